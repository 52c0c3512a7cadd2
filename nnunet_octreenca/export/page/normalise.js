// The part of an image that is not zero, and nnU-Net's normalisation of its channels.

import { Refusal } from './refusal.js';

const SMALLEST = 1e-8; // deviation that nnU-Net divides by

export const product = (shape) => shape.reduce((a, b) => a * b, 1);

/** First cell and end per axis of what is not zero in any channel; the whole image where all is. */
export function nonzeroBox(data, channels, shape) {
  const [depth, height, width] = shape,
    box = [
      [depth, 0],
      [height, 0],
      [width, 0],
    ];
  for (let c = 0, at = 0; c < channels; ++c) {
    for (let z = 0; z < depth; ++z) {
      for (let y = 0; y < height; ++y, at += width) {
        let first = 0,
          end = width;
        while (first < end && data[at + first] === 0) ++first;
        if (first === end) continue;
        while (data[at + end - 1] === 0) --end;
        [
          [z, z + 1],
          [y, y + 1],
          [first, end],
        ].forEach(([low, high], axis) => {
          box[axis][0] = Math.min(box[axis][0], low);
          box[axis][1] = Math.max(box[axis][1], high);
        });
      }
    }
  }
  return box[0][1] ? box : shape.map((cells) => [0, cells]);
}

/** Calls work(index in the data, index in the box) for all cells of a box of a channel. */
export function overBox(shape, box, channel, work) {
  const [, height, width] = shape,
    cells = product(shape);
  let inside = 0;
  for (let z = box[0][0]; z < box[0][1]; ++z) {
    for (let y = box[1][0]; y < box[1][1]; ++y) {
      const row = channel * cells + (z * height + y) * width;
      for (let x = box[2][0]; x < box[2][1]; ++x) work(row + x, inside++);
    }
  }
}

/** 1 where some channel is not zero, holes filled: [box]. */
export function nonzeroMask(data, channels, shape, box) {
  const size = box.map(([first, end]) => end - first);
  const mask = new Uint8Array(product(size));
  for (let c = 0; c < channels; ++c)
    overBox(shape, box, c, (at, i) => {
      if (data[at] !== 0) mask[i] = 1;
    });
  // A plane or two can enclose nothing: every cell lies on the border of the volume.
  return Math.min(...size) <= 2 ? mask : filledHoles(mask, size);
}

function filledHoles(mask, [depth, height, width]) {
  const outside = new Uint8Array(mask.length),
    stack = [];
  const visit = (i) => {
    if (!mask[i] && !outside[i]) {
      outside[i] = 1;
      stack.push(i);
    }
  };
  for (let z = 0, i = 0; z < depth; ++z) {
    for (let y = 0; y < height; ++y) {
      for (let x = 0; x < width; ++x, ++i) {
        if (!z || !y || !x || z === depth - 1 || y === height - 1 || x === width - 1) visit(i);
      }
    }
  }
  while (stack.length) {
    const i = stack.pop();
    const x = i % width,
      y = Math.floor(i / width) % height,
      z = Math.floor(i / (width * height));
    if (x) visit(i - 1);
    if (x < width - 1) visit(i + 1);
    if (y) visit(i - width);
    if (y < height - 1) visit(i + width);
    if (z) visit(i - width * height);
    if (z < depth - 1) visit(i + width * height);
  }
  return outside.map((flag) => 1 - flag);
}

function moments(image, channel, box, mask) {
  let count = 0,
    sum = 0,
    squares = 0;
  const over = (work) =>
    overBox(image.shape, box, channel, (at, i) => {
      if (!mask || mask[i]) work(image.data[at]);
    });
  over((value) => {
    ++count;
    sum += value;
  });
  const mean = count ? sum / count : 0;
  over((value) => {
    squares += (value - mean) ** 2;
  });
  return { mean, std: count ? Math.sqrt(squares / count) : 0 };
}

function extremes(image, channel, box) {
  let low = Infinity,
    high = -Infinity;
  overBox(image.shape, box, channel, (at) => {
    const value = image.data[at];
    if (value < low) low = value;
    if (value > high) high = value;
  });
  return { low: Math.fround(low), high: Math.fround(high) };
}

/** clip, subtract and divide of a channel, in float32 as nnU-Net has them. */
export function normalizerOf(model, image, channel, box, mask) {
  const scheme = model.schemes[channel];
  if (scheme === 'ZScoreNormalization') {
    const masked = model.useMask[channel];
    const { mean, std } = moments(image, channel, box, masked ? mask : null);
    return { subtract: Math.fround(mean), divide: Math.max(Math.fround(std), SMALLEST), masked };
  }
  if (scheme === 'CTNormalization') {
    const of = model.intensities[channel];
    return {
      clip: [Math.fround(of.percentile_00_5), Math.fround(of.percentile_99_5)],
      subtract: Math.fround(of.mean),
      divide: Math.fround(Math.max(of.std, SMALLEST)),
    };
  }
  if (scheme === 'RescaleTo01Normalization') {
    const { low, high } = extremes(image, channel, box);
    return { subtract: low, divide: Math.max(Math.fround(high - low), Math.fround(SMALLEST)) };
  }
  if (scheme === 'RGBTo01Normalization') {
    const { low, high } = extremes(image, channel, box);
    if (low < 0 || high > 255) {
      throw new Refusal(
        `channel ${channel} holds values from ${low} to ${high}, but the model was trained on colours from 0 to 255; save the image with 8 bits a channel`,
      );
    }
    return { divide: 255 };
  }
  if (scheme === 'NoNormalization') return {};
  throw new Refusal(`the model's normalisation ${scheme} is not supported`);
}

/** A value as the network takes it, rounded to float32 after every operation. */
export function normalized(value, { clip, subtract, divide }) {
  let result = Math.fround(value);
  if (clip) result = Math.min(Math.max(result, clip[0]), clip[1]);
  if (subtract !== undefined) result = Math.fround(result - subtract);
  if (divide !== undefined) result = Math.fround(result / divide);
  return result;
}
