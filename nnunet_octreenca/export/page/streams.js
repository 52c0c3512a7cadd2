// Compressed bytes in and out, with the browser's own deflate.

import { Refusal } from './refusal.js';

/**
 * @param {Uint8Array[]} parts one stream, in pieces
 * @param {string} format 'gzip' or 'deflate' (zlib)
 * @param {number} most bytes that there can be; more is refused
 */
export async function inflated(parts, format, most = Infinity) {
  const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream(format)).getReader();
  const pieces = [];
  let length = 0;
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch {
      throw new Refusal('its compressed data are damaged or truncated');
    }
    if (piece.done) break;
    pieces.push(piece.value);
    length += piece.value.length;
    if (length > most) {
      await reader.cancel();
      throw new Refusal(`it decompresses to more than the ${most} bytes that its header promises`);
    }
  }
  const whole = new Uint8Array(length);
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

/** @param {Uint8Array[]} parts */
export async function deflated(parts, format) {
  const stream = new Blob(parts).stream().pipeThrough(new CompressionStream(format));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
