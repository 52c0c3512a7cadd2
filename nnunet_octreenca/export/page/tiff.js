// TIFF of one page: strips or tiles of 8 or 16 bits, plain, LZW, deflate or PackBits.

import { planar, requireSize } from './colours.js';
import { Refusal } from './refusal.js';
import { inflated } from './streams.js';

const TAG = {
  width: 256,
  height: 257,
  bits: 258,
  compression: 259,
  photometric: 262,
  strips: 273,
  orientation: 274,
  samples: 277,
  stripRows: 278,
  stripBytes: 279,
  planar: 284,
  predictor: 317,
  tileWidth: 322,
  tileHeight: 323,
  tiles: 324,
  tileBytes: 325,
  extra: 338,
  format: 339,
};
const SIZES = { 1: 1, 3: 2, 4: 4 }; // bytes of BYTE, SHORT, LONG
const PLAIN = 1,
  LZW = 5,
  DEFLATE = 8,
  OLD_DEFLATE = 32946,
  PACKBITS = 32773;
const BLACK_IS_ZERO = 1,
  RGB = 2;
const UNASSOCIATED = 2;

export function isTiff(bytes) {
  const text = String.fromCharCode(bytes[0], bytes[1]);
  return (
    (text === 'II' || text === 'MM') &&
    (bytes[2] === 42 || bytes[3] === 42 || bytes[2] === 43 || bytes[3] === 43)
  );
}

/** Tags of the first page, and whether there are more. */
function directoryOf(view, little) {
  const within = (at, count) => {
    if (at + count > view.byteLength)
      throw new Refusal(`it ends before byte ${at + count}; it is truncated`);
  };
  const magic = view.getUint16(2, little);
  if (magic === 43) throw new Refusal('it is a BigTIFF; use nnunet_octreenca predict');
  const at = view.getUint32(4, little);
  within(at, 2);
  const count = view.getUint16(at, little);
  within(at, 2 + 12 * count + 4);
  const tags = new Map();
  for (let i = 0; i < count; ++i) {
    const entry = at + 2 + 12 * i;
    const size = SIZES[view.getUint16(entry + 2, little)],
      many = view.getUint32(entry + 4, little);
    if (!size) continue;
    const begin = size * many <= 4 ? entry + 8 : view.getUint32(entry + 8, little);
    within(begin, size * many);
    const read = { 1: 'getUint8', 2: 'getUint16', 4: 'getUint32' }[size];
    tags.set(
      view.getUint16(entry, little),
      Array.from({ length: many }, (_, n) => view[read](begin + n * size, little)),
    );
  }
  return { tags, more: view.getUint32(at + 2 + 12 * count, little) !== 0 };
}

function headerOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 8) throw new Refusal('it is truncated');
  const little = bytes[0] === 0x49;
  const { tags, more } = directoryOf(view, little);
  if (more)
    throw new Refusal('it has several pages; save one of them, or use nnunet_octreenca predict');
  const get = (name, otherwise) => tags.get(TAG[name])?.[0] ?? otherwise;
  const header = {
    little,
    width: get('width', 0),
    height: get('height', 0),
    samples: get('samples', 1),
    bits: get('bits', 1),
    compression: get('compression', PLAIN),
    planar: get('planar', 1),
    predictor: get('predictor', 1),
    photometric: get('photometric'),
    format: get('format', 1),
    alpha: false,
  };
  const extra = tags.get(TAG.extra) ?? [];
  const rules = [
    [
      tags.get(TAG.bits)?.every((b) => b === header.bits) &&
        (header.bits === 8 || header.bits === 16),
      `${tags.get(TAG.bits) ?? 1} bits a sample; save it with 8 or 16`,
    ],
    [header.format === 1, `samples of format ${header.format}; save it as unsigned integers`],
    [
      header.photometric === BLACK_IS_ZERO || header.photometric === RGB,
      `colours of kind ${header.photometric}; save it as grey or RGB`,
    ],
    [get('orientation', 1) === 1, `orientation ${get('orientation')}; save it upright`],
    [
      header.predictor === 1 || header.predictor === 2,
      `predictor ${header.predictor}; save it without`,
    ],
    [
      [PLAIN, LZW, DEFLATE, OLD_DEFLATE, PACKBITS].includes(header.compression),
      `compression ${header.compression}; save it with LZW or deflate`,
    ],
    [
      extra.length === 0 || (extra.length === 1 && extra[0] === UNASSOCIATED),
      `extra samples of kind ${extra}; save it without`,
    ],
    [
      header.samples === (header.photometric === RGB ? 3 : 1) + extra.length,
      `${header.samples} samples a pixel`,
    ],
  ];
  for (const [fine, what] of rules) if (!fine) throw new Refusal(`it has ${what}`);
  header.alpha = extra.length === 1;
  requireSize(header.width, header.height, header.samples, header.bits / 8);
  const tiled = tags.has(TAG.tiles);
  header.blockWidth = tiled ? get('tileWidth', 0) : header.width;
  header.blockHeight = tiled
    ? get('tileHeight', 0)
    : Math.min(get('stripRows', header.height), header.height);
  if (!(header.blockWidth > 0 && header.blockHeight > 0))
    throw new Refusal('its blocks have no size; it is damaged');
  requireSize(header.blockWidth, header.blockHeight, header.samples, header.bits / 8);
  header.tiled = tiled;
  header.offsets = tags.get(tiled ? TAG.tiles : TAG.strips) ?? [];
  header.counts = tags.get(tiled ? TAG.tileBytes : TAG.stripBytes) ?? [];
  return header;
}

function unpackedBits(bytes, size) {
  const out = new Uint8Array(size);
  let to = 0;
  for (let at = 0; at < bytes.length && to < size; ) {
    const head = (bytes[at++] << 24) >> 24;
    if (head === -128) continue;
    if (head >= 0) {
      out.set(bytes.subarray(at, at + Math.min(head + 1, size - to)), to);
      at += head + 1;
      to += head + 1;
    } else {
      out.fill(bytes[at++], to, to + 1 - head);
      to += 1 - head;
    }
  }
  return to < size ? out.subarray(0, to) : out;
}

function unpackedLzw(bytes, size) {
  const out = new Uint8Array(size);
  // A code's string is the one of an earlier place in the output.
  const begins = new Uint32Array(4097),
    lengths = new Uint32Array(4097);
  let next = 258,
    width = 9,
    bit = 0,
    to = 0,
    before = -1;
  while (to < size && bit + width <= 8 * bytes.length) {
    const at = bit >> 3;
    const word = (bytes[at] << 16) | ((bytes[at + 1] ?? 0) << 8) | (bytes[at + 2] ?? 0);
    const code = (word >> (24 - (bit & 7) - width)) & ((1 << width) - 1);
    bit += width;
    if (code === 257) break;
    if (code === 256) {
      next = 258;
      width = 9;
      before = -1;
      continue;
    }
    if (code > next || (code === next && before < 0)) throw new Refusal('its LZW data are damaged');
    const begin = to;
    if (before >= 0) {
      begins[next] = before;
      lengths[next] = begin - before + 1;
      if (next < 4096) ++next;
    }
    if (code < 256) out[to++] = code;
    else {
      const from = begins[code],
        end = Math.min(lengths[code], size - to);
      for (let i = 0; i < end; ++i) out[to++] = out[from + i];
    }
    before = begin;
    width = next >= 2047 ? 12 : next >= 1023 ? 11 : next >= 511 ? 10 : 9;
  }
  return out.subarray(0, to);
}

async function block(header, bytes, index, size) {
  const begin = header.offsets[index],
    count = header.counts[index];
  if (begin === undefined || count === undefined || begin + count > bytes.length) {
    throw new Refusal(
      `its ${header.tiled ? 'tile' : 'strip'} ${index} is not whole; it is truncated`,
    );
  }
  const packed = bytes.subarray(begin, begin + count);
  const unpack =
    {
      [PLAIN]: () => packed,
      [LZW]: () => unpackedLzw(packed, size),
      [PACKBITS]: () => unpackedBits(packed, size),
    }[header.compression] ?? (() => inflated([packed], 'deflate', size));
  const raw = await unpack();
  if (raw.length < size) {
    throw new Refusal(
      `its ${header.tiled ? 'tile' : 'strip'} ${index} holds ${raw.length} of ${size} bytes; it is damaged`,
    );
  }
  return raw;
}

function samplesOf(header, raw, rows, perPixel) {
  let values = raw;
  if (header.bits === 16) {
    const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
    values = new Uint16Array(raw.length >> 1);
    for (let i = 0; i < values.length; ++i) values[i] = view.getUint16(2 * i, header.little);
  }
  if (header.predictor !== 2) return values;
  values = values.slice();
  const length = header.blockWidth * perPixel;
  for (let y = 0; y < rows; ++y) {
    for (let i = perPixel; i < length; ++i)
      values[y * length + i] += values[y * length + i - perPixel];
  }
  return values;
}

/** As `readPng`. */
export async function readTiff(bytes, wanted) {
  const header = headerOf(bytes);
  const { width, height, samples, blockWidth, blockHeight, tiled } = header;
  const perPixel = header.planar === 2 ? 1 : samples;
  const across = Math.ceil(width / blockWidth),
    down = Math.ceil(height / blockHeight);
  const pixels = new (header.bits === 16 ? Uint16Array : Uint8Array)(width * height * samples);
  for (let plane = 0; plane < samples / perPixel; ++plane) {
    for (let row = 0; row < down; ++row) {
      const inside = Math.min(blockHeight, height - row * blockHeight);
      const rows = tiled ? blockHeight : inside;
      for (let column = 0; column < across; ++column) {
        const size = rows * blockWidth * perPixel * (header.bits / 8);
        const index = (plane * down + row) * across + column;
        const values = samplesOf(header, await block(header, bytes, index, size), rows, perPixel);
        const columns = Math.min(blockWidth, width - column * blockWidth);
        for (let y = 0; y < inside; ++y) {
          for (let x = 0; x < columns; ++x) {
            const to =
              ((row * blockHeight + y) * width + column * blockWidth + x) * samples + plane;
            for (let s = 0; s < perPixel; ++s)
              pixels[to + s] = values[(y * blockWidth + x) * perPixel + s];
          }
        }
      }
    }
  }
  return { shape: [1, height, width], ...planar(pixels, samples, header.alpha, wanted) };
}
