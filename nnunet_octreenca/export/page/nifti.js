// NIfTI-1 volumes, plain or gzipped: voxels in, labels out on the same grid.

import { Refusal } from './refusal.js';
import { deflated, inflated } from './streams.js';

const HEADER = 348;
const TYPES = {
  2: [Uint8Array, 'getUint8'],
  4: [Int16Array, 'getInt16'],
  8: [Int32Array, 'getInt32'],
  16: [Float32Array, 'getFloat32'],
  64: [Float64Array, 'getFloat64'],
  256: [Int8Array, 'getInt8'],
  512: [Uint16Array, 'getUint16'],
  768: [Uint32Array, 'getUint32'],
};
const MM = { 0: 1, 1: 1000, 2: 1, 3: 0.001 }; // of xyzt_units: unknown (mm), m, mm, micrometres
const MOST_BYTES = 2 ** 31 - 1;

const isGzip = (bytes) => bytes[0] === 0x1f && bytes[1] === 0x8b;

export async function isNifti(bytes) {
  return (
    isGzip(bytes) ||
    (bytes.length >= HEADER && String.fromCharCode(...bytes.subarray(345, 347)) === '+1')
  );
}

const damaged = (field, value, rule) =>
  new Refusal(`its header is damaged: ${field} is ${value}, and ${rule}`);

/** What the fields say of grid, type, values and place; refused by name where it cannot be meant. */
function headerOf(bytes) {
  if (bytes.length < HEADER)
    throw new Refusal(`it is only ${bytes.length} bytes long, and truncated`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const little = view.getInt32(0, true) === HEADER;
  const magic = String.fromCharCode(...bytes.subarray(344, 347));
  if (magic === 'ni1')
    throw new Refusal('it is a NIfTI header without its voxels; save it as one file');
  if ((!little && view.getInt32(0, false) !== HEADER) || magic !== 'n+1') {
    throw new Refusal('it is no NIfTI-1 file');
  }
  const int16 = (at) => view.getInt16(at, little),
    float = (at) => view.getFloat32(at, little);
  const axes = int16(40);
  if (axes < 2 || axes > 7) throw damaged('dim[0]', axes, 'must be 2 to 7');
  const dim = Array.from({ length: axes }, (_, i) => int16(42 + 2 * i));
  dim.forEach((cells, i) => {
    if (cells < 1) throw damaged(`dim[${i + 1}]`, cells, 'must be 1 or more');
  });
  const type = TYPES[int16(70)];
  if (!type)
    throw new Refusal(`its voxels are of datatype ${int16(70)}; save it as integers or floats`);
  if (int16(72) !== 8 * type[0].BYTES_PER_ELEMENT) {
    throw damaged('bitpix', int16(72), `must be ${8 * type[0].BYTES_PER_ELEMENT}`);
  }
  const offset = float(108) || HEADER + 4;
  if (!Number.isInteger(offset) || offset < HEADER + 4)
    throw damaged('vox_offset', offset, 'must be a whole number from 352');
  const long = dim.slice(3).filter((cells) => cells > 1);
  if (long.length > 1)
    throw new Refusal(
      `it has ${axes} axes, ${dim.join(' x ')}; only volumes with channels can be read`,
    );
  const shape = [dim[2] ?? 1, dim[1], dim[0]],
    channels = long[0] ?? 1;
  const size = offset + channels * shape.reduce((a, b) => a * b) * type[0].BYTES_PER_ELEMENT;
  if (size > MOST_BYTES)
    throw new Refusal(
      `its ${dim.join(' x ')} voxels are more than a web page can hold; use nnunet_octreenca predict`,
    );
  return {
    view,
    little,
    type,
    offset,
    shape,
    channels,
    size,
    flat: axes === 2,
    scale: scaleOf(float),
    spacing: spacingOf(view, little, axes),
  };
}

function scaleOf(float) {
  const slope = float(112),
    intercept = float(116);
  const none = slope === 0 || Number.isNaN(slope);
  if (slope === Infinity || slope === -Infinity)
    throw damaged('scl_slope', slope, 'must be finite, or 0 for none');
  if (!none && !Number.isFinite(intercept)) throw damaged('scl_inter', intercept, 'must be finite');
  if (Number.isNaN(slope) && intercept && !Number.isNaN(intercept)) {
    throw damaged('scl_slope', slope, `must be a number where scl_inter is ${intercept}`);
  }
  return none || (slope === 1 && intercept === 0) ? null : { slope, intercept };
}

/** mm (z, y, x): of the qform where it has a code, else of the sform. */
function spacingOf(view, little, axes) {
  const float = (at) => view.getFloat32(at, little);
  const qform = view.getInt16(252, little),
    sform = view.getInt16(254, little);
  for (const [name, code] of [
    ['qform_code', qform],
    ['sform_code', sform],
  ]) {
    if (code < 0 || code > 5) throw damaged(name, code, 'must be 0 to 5');
  }
  const bySform = sform > 0 && qform === 0;
  const sizes = [1, 2, 3].map((axis) => (axis <= axes ? float(76 + 4 * axis) : 1));
  sizes.forEach((size, axis) => {
    if (!Number.isFinite(size) || size < 0 || (size === 0 && !bySform)) {
      throw damaged(`pixdim[${axis + 1}]`, size, "must be above 0, the voxel's size");
    }
  });
  if (bySform) {
    for (let axis = 0; axis < 3; ++axis) {
      const column = Math.hypot(...[280, 296, 312].map((row) => float(row + 4 * axis)));
      if (column > 0) sizes[axis] = column;
    }
  }
  sizes.forEach((size, axis) => {
    if (!(size > 0 && size < Infinity))
      throw damaged(`the voxel's size along axis ${axis + 1}`, size, 'must be above 0 mm');
  });
  const mm = MM[view.getUint8(123) & 7] ?? 1;
  return sizes.map((size) => size * mm).reverse();
}

function voxelsOf(bytes, header) {
  const [Type, get] = header.type,
    step = Type.BYTES_PER_ELEMENT;
  const count = (header.size - header.offset) / step;
  const aligned = bytes.slice(header.offset, header.size);
  let raw;
  if (header.little || step === 1) raw = new Type(aligned.buffer);
  else {
    const view = new DataView(aligned.buffer);
    raw = Type.from({ length: count }, (_, i) => view[get](i * step, false));
  }
  if (!header.scale) return Type === Float64Array ? Float32Array.from(raw) : raw;
  const { slope, intercept } = header.scale;
  return Float32Array.from(raw, (value) => value * slope + intercept);
}

/** @returns the image: channels, shape (z, y, x), data [channel][z][y][x], spacing in mm, header */
export async function readNifti(bytes) {
  const packed = isGzip(bytes);
  const content = packed ? await inflated([bytes], 'gzip', MOST_BYTES) : bytes;
  const header = headerOf(content);
  if (content.length < header.size) {
    throw new Refusal(
      `its header promises ${header.size} bytes, but it holds ${content.length}; it is truncated`,
    );
  }
  const data = voxelsOf(content, header);
  if (data instanceof Float32Array) {
    let wrong = 0;
    for (const value of data) if (!Number.isFinite(value)) ++wrong;
    if (wrong) throw new Refusal(`${wrong} of its voxels are NaN or infinite; repair it first`);
  }
  return {
    channels: header.channels,
    shape: header.shape,
    data,
    spacing: header.spacing,
    flat: header.flat,
    nifti: content.slice(0, HEADER),
  };
}

/**
 * Labels with the image's own header: its grid, its place.
 *
 * @param {Uint8Array} labels [z][y][x]
 * @param {Uint8Array} original the image's header
 * @returns {Promise<Blob>} gzipped
 */
export async function niftiOf(labels, original) {
  const file = new Uint8Array(HEADER + 4 + labels.length);
  file.set(original);
  const view = new DataView(file.buffer),
    little = view.getInt32(0, true) === HEADER;
  const axes = Math.min(view.getInt16(40, little), 3);
  view.setInt16(40, axes, little);
  for (let axis = axes + 1; axis < 8; ++axis) view.setInt16(40 + 2 * axis, 1, little);
  view.setInt16(68, 0, little); // intent
  view.setInt16(70, 2, little); // unsigned bytes
  view.setInt16(72, 8, little);
  view.setFloat32(108, HEADER + 4, little);
  view.setFloat32(112, 1, little);
  view.setFloat32(116, 0, little);
  for (const at of [124, 128]) view.setFloat32(at, 0, little); // cal_max, cal_min
  file.fill(0, 148, 228); // descrip
  file.fill(0, HEADER, HEADER + 4); // no extension
  file.set(labels, HEADER + 4);
  return new Blob([await deflated([file], 'gzip')], { type: 'application/gzip' });
}
