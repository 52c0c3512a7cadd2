// How an image is shown: its colours, its planes, classes over it.

import { bitmapOf } from './plane.js';

const SAMPLED = 20000,
  LOW = 0.005,
  HIGH = 0.995; // of a volume's values, to black and to white
export const AXES = ['z', 'y', 'x'];

/** Black and white of the grey values: those of bytes are shown as they are. */
export function windowOf(data) {
  if (data instanceof Uint8Array && data.some((value) => value > 1)) return [0, 255];
  const step = Math.max(1, Math.floor(data.length / SAMPLED));
  const values = Float64Array.from(
    { length: Math.ceil(data.length / step) },
    (_, i) => data[i * step],
  ).sort();
  const at = (share) => values[Math.round(share * (values.length - 1))];
  const [low, high] = [at(LOW), at(HIGH)];
  return high > low ? [low, high] : [values[0], Math.max(values.at(-1), values[0] + 1)];
}

/** Cells from one to the next along a plane's rows and columns, its first cell and its size. */
export function planeOf(shape, axis, index) {
  const strides = [shape[1] * shape[2], shape[2], 1];
  const [rows, columns] = [0, 1, 2].filter((other) => other !== axis);
  return {
    width: shape[columns],
    height: shape[rows],
    first: index * strides[axis],
    right: strides[columns],
    down: strides[rows],
    rows,
    columns,
  };
}

/**
 * @param {object} shown data [channel][z][y][x], shape, channels, window
 * @param {boolean} upwards whether rows go up, as a body's axes do
 */
export class Painter {
  constructor(shown, upwards) {
    Object.assign(this, { ...shown, upwards });
    this.cells = shown.shape.reduce((a, b) => a * b);
  }

  index(plane, at) {
    const x = at % plane.width,
      y = Math.floor(at / plane.width);
    return plane.first + x * plane.right + (this.upwards ? plane.height - 1 - y : y) * plane.down;
  }

  /** Writes red, green and blue of a cell. */
  colour(cell, out, to) {
    const [low, high] = this.window,
      scale = 255 / (high - low);
    for (let c = 0; c < 3; ++c) {
      const channel = this.channels >= 3 ? c : 0;
      out[to + c] = Math.max(
        0,
        Math.min(255, (this.data[channel * this.cells + cell] - low) * scale),
      );
    }
  }

  image(plane) {
    return bitmapOf(plane.width, plane.height, (at, out, to) => {
      this.colour(this.index(plane, at), out, to);
      out[to + 3] = 255;
    });
  }

  classes(plane, labels, colours) {
    return bitmapOf(plane.width, plane.height, (at, out, to) => {
      const label = labels[this.index(plane, at)];
      if (!label) return;
      for (let c = 0; c < 3; ++c) out[to + c] = colours[label][c];
      out[to + 3] = 255;
    });
  }

  /** Classes over the image, at its full size: [height][width][3]. */
  overlay(plane, labels, colours, opacity) {
    const pixels = new Uint8ClampedArray(3 * plane.width * plane.height);
    for (let at = 0; at < plane.width * plane.height; ++at) {
      const cell = this.index(plane, at),
        label = labels[cell];
      this.colour(cell, pixels, 3 * at);
      if (!label) continue;
      for (let c = 0; c < 3; ++c) {
        const value = pixels[3 * at + c];
        pixels[3 * at + c] = value + opacity * (colours[label][c] - value);
      }
    }
    return new Uint8Array(pixels.buffer);
  }
}

/**
 * A frame of the automaton where the image lies: what the network sees may be cropped from it, and
 * lie amid zeros.
 *
 * @param {HTMLCanvasElement} base the image's plane, whose size the frame gets
 */
export function placedFrame(image, plane, base, frame, upwards) {
  const [, height, width] = frame.shape;
  const [, padHeight, padWidth] = image.padded;
  const [, top, left] = image.begin;
  const [, ownHeight, ownWidth] = image.own;
  const [, [boxTop, boxBottom], [boxLeft, boxRight]] = (image.source ?? image).box;
  const colours = bitmapOf(width, height, (cell, out, to) => {
    const y = Math.floor(cell / width);
    const at = 4 * ((upwards ? height - 1 - y : y) * width + (cell % width));
    for (let c = 0; c < 4; ++c) out[to + c] = frame.rgba[at + c];
  });
  const placed = document.createElement('canvas');
  Object.assign(placed, { width: base.width, height: base.height });
  const context = placed.getContext('2d');
  context.imageSmoothingEnabled = false;
  const from = [colours.width / padWidth, colours.height / padHeight];
  const to = [placed.width / plane.width, placed.height / plane.height];
  const scaled = (box, [x, y]) => [box[0] * x, box[1] * y, box[2] * x, box[3] * y];
  const seen = [left, upwards ? padHeight - top - ownHeight : top, ownWidth, ownHeight];
  const y = upwards ? plane.height - boxBottom : boxTop;
  const shown = [boxLeft, y, boxRight - boxLeft, boxBottom - boxTop];
  context.drawImage(colours, ...scaled(seen, from), ...scaled(shown, to));
  return placed;
}
