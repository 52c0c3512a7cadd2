// JPEG, decoded by the browser, in a canvas that has first been seen to tell the truth.

import { planar, requireSize } from './colours.js';
import { Refusal } from './refusal.js';

const START = 0xd8,
  END = 0xd9,
  SCAN = 0xda;
// Frame headers, but for the tables that lie between them.
const isFrame = (marker) =>
  marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);

export function isJpeg(bytes) {
  return bytes[0] === 0xff && bytes[1] === START && bytes[2] === 0xff;
}

/** Components, and whether the file ends as JPEG does. */
function headerOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let end = bytes.length;
  while (end > 2 && bytes[end - 1] === 0) --end;
  if (bytes[end - 2] !== 0xff || bytes[end - 1] !== END)
    throw new Refusal('it ends in its middle; it is truncated');
  for (let at = 2; at + 9 < bytes.length; ) {
    if (bytes[at] !== 0xff) throw new Refusal(`byte ${at} should begin a segment; it is damaged`);
    const marker = bytes[at + 1];
    if (marker === 0xff) {
      ++at;
      continue;
    }
    if (isFrame(marker)) {
      const [precision, components] = [bytes[at + 4], bytes[at + 9]];
      if (precision !== 8) throw new Refusal(`it has ${precision} bits a colour; save it with 8`);
      return { height: view.getUint16(at + 5), width: view.getUint16(at + 7), components };
    }
    if (marker === SCAN) break;
    at += 2 + view.getUint16(at + 2);
  }
  throw new Refusal('it has no header of a frame; it is damaged');
}

function canvasOf(width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext('2d', { willReadFrequently: true });
  if (!context) throw new RangeError('out of memory');
  return context;
}

/** Whether a canvas gives back what was put in; against fingerprinting some give noise. */
export function canvasTellsTheTruth(context = canvasOf(16, 16)) {
  const pixels = new ImageData(16, 16);
  for (let i = 0; i < 256; ++i) pixels.data.set([i, (i * 7) & 255, (i * 13) & 255, 255], 4 * i);
  context.putImageData(pixels, 0, 0);
  const back = context.getImageData(0, 0, 16, 16).data;
  return pixels.data.every((value, i) => value === back[i]);
}

/** As `readPng`. */
export async function readJpeg(bytes, wanted) {
  const { components, height, width } = headerOf(bytes);
  if (components !== 1 && components !== 3) {
    throw new Refusal(`it has ${components} colours (CMYK); save it as RGB`);
  }
  requireSize(width, height, 4, 1);
  if (!canvasTellsTheTruth()) {
    throw new Refusal(
      'this browser alters pixels that a page reads (protection against fingerprinting), and labels would be wrong; save the picture as PNG',
    );
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([bytes], { type: 'image/jpeg' }), {
      colorSpaceConversion: 'none',
      premultiplyAlpha: 'none',
    });
  } catch {
    throw new Refusal('the browser cannot decode it; it is damaged');
  }
  const context = canvasOf(bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  const shape = [1, bitmap.height, bitmap.width];
  bitmap.close();
  const pixels = new Uint8Array((rgba.length / 4) * components);
  for (let i = 0; 4 * i < rgba.length; ++i) {
    for (let c = 0; c < components; ++c) pixels[i * components + c] = rgba[4 * i + c];
  }
  return { shape, ...planar(pixels, components, false, wanted) };
}
