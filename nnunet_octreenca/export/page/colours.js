// The colours that a picture shows: palettes resolved, transparency laid over white.

import { Refusal } from './refusal.js';

/** Channels of an image of `samples`: alpha goes, unless a model wants as many as there are. */
export function channelsKept(samples, alpha, wanted) {
  return alpha && wanted !== samples ? samples - 1 : samples;
}

/**
 * @param {Uint8Array|Uint16Array} pixels [cells][samples]
 * @param {number} samples alpha among them
 * @param {boolean} alpha the last sample is alpha, not multiplied in
 * @param {number} wanted channels of the model
 * @returns {{channels: number, data: Uint8Array|Uint16Array}} [channels][cells]
 */
export function planar(pixels, samples, alpha, wanted) {
  const cells = pixels.length / samples;
  const channels = channelsKept(samples, alpha, wanted);
  const data = new pixels.constructor(channels * cells);
  const white = 2 ** (8 * pixels.BYTES_PER_ELEMENT) - 1;
  const over = channels < samples;
  for (let i = 0, at = 0; i < cells; ++i, at += samples) {
    const opaque = over ? pixels[at + channels] : white;
    for (let c = 0; c < channels; ++c) {
      const value = pixels[at + c];
      data[c * cells + i] =
        opaque === white
          ? value
          : Math.floor((value * opaque + (white - opaque) * white + Math.floor(white / 2)) / white);
    }
  }
  return { channels, data };
}

const LARGEST = 2 ** 31 - 1;

/** Refuses what no browser could hold, before anything is allocated. */
export function requireSize(width, height, samples, bytes) {
  if (!(width > 0 && height > 0)) throw new Refusal(`it has ${width} x ${height} pixels`);
  if (width * height * samples * bytes > LARGEST) {
    throw new Refusal(
      `its ${width} x ${height} pixels are more than a web page can hold; use nnunet_octreenca predict`,
    );
  }
}
