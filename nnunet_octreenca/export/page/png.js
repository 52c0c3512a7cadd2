// PNG, read and written without the browser's decoder, which may alter pixels against fingerprinting.

import { planar, requireSize } from './colours.js';
import { Refusal } from './refusal.js';
import { deflated, inflated } from './streams.js';

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const GREY = 0,
  COLOURS = 2,
  PALETTE = 3,
  GREY_ALPHA = 4,
  COLOURS_ALPHA = 6;
const SAMPLES = { [GREY]: 1, [COLOURS]: 3, [PALETTE]: 1, [GREY_ALPHA]: 2, [COLOURS_ALPHA]: 4 };
const DEPTHS = {
  [GREY]: [1, 2, 4, 8, 16],
  [COLOURS]: [8, 16],
  [PALETTE]: [1, 2, 4, 8],
  [GREY_ALPHA]: [8, 16],
  [COLOURS_ALPHA]: [8, 16],
};
// x and y of the first pixel and steps of each of Adam7's passes
const ADAM7 = [
  [0, 0, 8, 8],
  [4, 0, 8, 8],
  [0, 4, 4, 8],
  [2, 0, 4, 4],
  [0, 2, 2, 4],
  [1, 0, 2, 2],
  [0, 1, 1, 2],
];

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; ++bit) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

export function isPng(bytes) {
  return SIGNATURE.every((byte, i) => bytes[i] === byte);
}

function chunksOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const chunks = [];
  for (let at = 8; ; ) {
    if (at + 12 > bytes.length)
      throw new Refusal(`its chunk at byte ${at} is not whole; it is truncated`);
    const length = view.getUint32(at);
    if (at + 12 + length > bytes.length) {
      throw new Refusal(`its chunk at byte ${at} is not whole; it is truncated`);
    }
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (crc32(bytes.subarray(at + 4, at + 8 + length)) !== view.getUint32(at + 8 + length)) {
      throw new Refusal(`the checksum of its chunk ${kind} at byte ${at} differs; it is damaged`);
    }
    chunks.push({ kind, data: bytes.subarray(at + 8, at + 8 + length) });
    if (kind === 'IEND') return chunks;
    at += 12 + length;
  }
}

function headerOf(chunks) {
  const first = chunks[0];
  if (first.kind !== 'IHDR' || first.data.length !== 13)
    throw new Refusal('it does not begin with IHDR');
  const view = new DataView(first.data.buffer, first.data.byteOffset, 13);
  const [depth, colour, , , interlace] = first.data.subarray(8);
  if (!DEPTHS[colour]?.includes(depth) || interlace > 1) {
    throw new Refusal(
      `its header names colour type ${colour} of ${depth} bits, which PNG does not have`,
    );
  }
  const header = { width: view.getUint32(0), height: view.getUint32(4), depth, colour, interlace };
  requireSize(header.width, header.height, SAMPLES[colour], depth === 16 ? 2 : 1);
  return header;
}

/** Undoes the filters of `rows` rows of `length` bytes, in place; returns them without filter bytes. */
function unfiltered(raw, begin, rows, length, step) {
  const out = new Uint8Array(rows * length);
  for (let y = 0, at = begin; y < rows; ++y, at += length) {
    const filter = raw[at++];
    const here = y * length,
      above = here - length;
    if (filter > 4)
      throw new Refusal(`row ${y} has filter ${filter}, which PNG does not have; it is damaged`);
    for (let i = 0; i < length; ++i) {
      const left = i >= step ? out[here + i - step] : 0;
      const up = y ? out[above + i] : 0;
      let add = 0;
      if (filter === 1) add = left;
      else if (filter === 2) add = up;
      else if (filter === 3) add = (left + up) >> 1;
      else if (filter === 4) {
        const corner = y && i >= step ? out[above + i - step] : 0;
        const guess = left + up - corner;
        const a = Math.abs(guess - left),
          b = Math.abs(guess - up),
          c = Math.abs(guess - corner);
        add = a <= b && a <= c ? left : b <= c ? up : corner;
      }
      out[here + i] = raw[at + i] + add;
    }
  }
  return out;
}

/** Samples of rows of bytes: [rows * width * samples], 16-bit grey as such, other 16 bits by halves. */
function samplesOf(bytes, rows, width, samples, depth) {
  const count = width * samples,
    length = Math.ceil((count * depth) / 8);
  if (depth === 8) return bytes;
  const out = depth === 16 ? new Uint16Array(rows * count) : new Uint8Array(rows * count);
  for (let y = 0; y < rows; ++y) {
    for (let i = 0; i < count; ++i) {
      if (depth === 16) {
        const at = y * length + 2 * i;
        out[y * count + i] = (bytes[at] << 8) | bytes[at + 1];
      } else {
        const bit = i * depth;
        out[y * count + i] =
          (bytes[y * length + (bit >> 3)] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
      }
    }
  }
  return out;
}

async function pixelsOf(header, chunks) {
  const { width, height, depth, interlace } = header;
  const samples = SAMPLES[header.colour],
    bits = samples * depth,
    step = Math.max(1, bits >> 3);
  const passes = (interlace ? ADAM7 : [[0, 0, 1, 1]])
    .map(([x, y, dx, dy]) => ({
      x,
      y,
      dx,
      dy,
      width: Math.ceil((width - x) / dx),
      height: Math.ceil((height - y) / dy),
    }))
    .filter((pass) => pass.width > 0 && pass.height > 0);
  const lengthOf = (pass) => Math.ceil((pass.width * bits) / 8);
  const size = passes.reduce((sum, pass) => sum + pass.height * (1 + lengthOf(pass)), 0);
  const data = chunks.filter(({ kind }) => kind === 'IDAT').map((chunk) => chunk.data);
  const raw = await inflated(data, 'deflate', size);
  if (raw.length < size)
    throw new Refusal(`it holds ${raw.length} of ${size} bytes of pixels; it is truncated`);
  let whole = null,
    begin = 0;
  for (const pass of passes) {
    const bytes = unfiltered(raw, begin, pass.height, lengthOf(pass), step);
    begin += pass.height * (1 + lengthOf(pass));
    const part = samplesOf(bytes, pass.height, pass.width, samples, depth);
    if (!interlace) return part;
    whole ??= new part.constructor(width * height * samples);
    for (let y = 0; y < pass.height; ++y) {
      for (let x = 0; x < pass.width; ++x) {
        const to = ((pass.y + y * pass.dy) * width + pass.x + x * pass.dx) * samples;
        for (let s = 0; s < samples; ++s) whole[to + s] = part[(y * pass.width + x) * samples + s];
      }
    }
  }
  return whole;
}

/** Colours as the Python reader has them: 8 bits, but for grey of 16 and of 1. */
function coloured(header, pixels, chunks) {
  const chunk = (name) => chunks.find(({ kind }) => kind === name)?.data;
  const { colour, depth } = header;
  const clear = chunk('tRNS');
  if (colour === PALETTE) {
    const table = chunk('PLTE');
    if (!table || table.length % 3) throw new Refusal('its palette is missing or damaged');
    const samples = clear ? 4 : 3,
      out = new Uint8Array(pixels.length * samples);
    for (let i = 0; i < pixels.length; ++i) {
      const at = 3 * pixels[i];
      if (at >= table.length)
        throw new Refusal(`colour ${pixels[i]} is not in its palette; it is damaged`);
      for (let c = 0; c < 3; ++c) out[i * samples + c] = table[at + c];
      if (clear) out[i * samples + 3] = clear[pixels[i]] ?? 255;
    }
    return { pixels: out, samples, alpha: Boolean(clear) };
  }
  const samples = SAMPLES[colour],
    alpha = colour === GREY_ALPHA || colour === COLOURS_ALPHA;
  if (clear && !alpha)
    throw new Refusal('one of its colours stands for transparency (tRNS); save it without');
  if (colour === GREY && depth < 8 && depth > 1)
    pixels = pixels.map((v) => (v * 255) / ((1 << depth) - 1));
  if (depth === 16 && colour !== GREY) pixels = Uint8Array.from(pixels, (v) => v >> 8);
  return { pixels, samples, alpha };
}

/**
 * @param {Uint8Array} bytes of a file
 * @param {number} wanted channels of the model
 * @returns the image: channels, shape (1, y, x), data [channel][y][x]
 */
export async function readPng(bytes, wanted) {
  const chunks = chunksOf(bytes);
  const header = headerOf(chunks);
  const kinds = new Set(chunks.map(({ kind }) => kind));
  if (kinds.has('eXIf')) throw new Refusal('it has EXIF data, which may turn it; save it without');
  if (kinds.has('acTL')) throw new Refusal('it is animated; save one of its frames');
  const { pixels, samples, alpha } = coloured(header, await pixelsOf(header, chunks), chunks);
  return { shape: [1, header.height, header.width], ...planar(pixels, samples, alpha, wanted) };
}

function chunk(kind, data) {
  const bytes = new Uint8Array(12 + data.length),
    view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(
    [...kind].map((c) => c.charCodeAt(0)),
    4,
  );
  bytes.set(data, 8);
  view.setUint32(8 + data.length, crc32(bytes.subarray(4, 8 + data.length)));
  return bytes;
}

/**
 * @param {Uint8Array} pixels [height][width][1 or 3]
 * @param {number} samples 1 grey, 3 colours
 * @returns {Promise<Blob>}
 */
export async function pngOf(pixels, width, height, samples) {
  const head = new Uint8Array(13),
    view = new DataView(head.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  head.set([8, samples === 1 ? GREY : COLOURS, 0, 0, 0], 8);
  const length = width * samples,
    raw = new Uint8Array(height * (length + 1));
  for (let y = 0; y < height; ++y) {
    raw.set(pixels.subarray(y * length, (y + 1) * length), y * (length + 1) + 1);
  }
  const parts = [
    Uint8Array.from(SIGNATURE),
    chunk('IHDR', head),
    chunk('IDAT', await deflated([raw], 'deflate')),
    chunk('IEND', new Uint8Array(0)),
  ];
  return new Blob(parts, { type: 'image/png' });
}
