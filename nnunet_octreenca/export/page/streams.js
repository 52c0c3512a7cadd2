// Compressed bytes in and out, with the browser's own deflate.

import { Refusal } from './refusal.js';

const CHUNK = 1 << 16; // what is inflated before anyone looks at how much it became

/** Feeds bytes to a stream; where they are wrong, its reader is told. */
async function feed(stream, parts) {
  const writer = stream.writable.getWriter();
  try {
    for (const part of parts) {
      for (let at = 0; at < part.length; at += CHUNK)
        await writer.write(part.subarray(at, at + CHUNK));
    }
    await writer.close();
  } catch {}
}

async function collected(stream, parts, most) {
  const reader = stream.readable.getReader();
  const fed = feed(stream, parts);
  const pieces = [];
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    pieces.push(value);
    length += value.length;
    if (length > most) {
      await reader.cancel();
      throw new Refusal(`it decompresses to more than the ${most} bytes that its header promises`);
    }
  }
  await fed;
  const whole = new Uint8Array(length);
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

/**
 * @param {Uint8Array[]} parts one stream, in pieces
 * @param {string} format 'gzip' or 'deflate' (zlib)
 * @param {number} most bytes that there can be; more is refused
 */
export async function inflated(parts, format, most = Infinity) {
  try {
    return await collected(new DecompressionStream(format), parts, most);
  } catch (error) {
    if (error instanceof Refusal || error instanceof RangeError) throw error;
    throw new Refusal('its compressed data are damaged or truncated');
  }
}

/** @param {Uint8Array[]} parts */
export const deflated = (parts, format) =>
  collected(new CompressionStream(format), parts, Infinity);
