// nnU-Net's preprocessing: axes of the plans, crop to what is not zero, normalisation, resampling,
// zeros around what is smaller than the context; and the way back for labels.

import { labelsOfLogits } from './labels.js';
import {
  nonzeroBox,
  nonzeroMask,
  normalized,
  normalizerOf,
  overBox,
  product,
} from './normalise.js';
import { Refusal } from './refusal.js';
import { resampled } from './resample.js';

const MOST_CELLS = 2 ** 28; // of a resampled image

/** The axes of [channels][z][y][x] exchanged; axis i of the result is axis order[i]. */
export function transposed(data, channels, shape, order) {
  if (order.every((axis, i) => axis === i)) return data;
  const strides = [shape[1] * shape[2], shape[2], 1],
    cells = product(shape);
  const [depth, height, width] = order.map((axis) => shape[axis]);
  const [sz, sy, sx] = order.map((axis) => strides[axis]);
  const out = new data.constructor(data.length);
  for (let c = 0, to = 0; c < channels; ++c) {
    for (let z = 0; z < depth; ++z) {
      for (let y = 0; y < height; ++y) {
        let from = c * cells + z * sz + y * sy;
        for (let x = 0; x < width; ++x, from += sx) out[to++] = data[from];
      }
    }
  }
  return out;
}

/** Cells per axis at the target spacing, as nnU-Net rounds them (ties to even). */
export function resampledShape(shape, spacing, target) {
  return shape.map((cells, axis) => {
    const exact = (spacing[axis] / target[axis]) * cells,
      floor = Math.floor(exact);
    if (exact - floor === 0.5) return floor % 2 ? floor + 1 : floor;
    return Math.round(exact);
  });
}

/** The network's grid, where it is not the image's: mm and cells per axis; null where it is. */
function gridOf(model, image, box) {
  if (!image.spacing) {
    if (model.dimension === 3)
      throw new Refusal('it is a picture, but the model segments volumes (NIfTI)');
    if (!model.natural || model.spacing.some((mm) => mm !== 1)) {
      throw new Refusal(
        `the model takes images of ${model.spacing.join(' x ')} mm, and a picture does not say its size; use nnunet_octreenca predict`,
      );
    }
    return null;
  }
  if (image.flat && model.dimension === 3)
    throw new Refusal('it is 2-D, but the model segments volumes');
  if (!model.data.resamples) return null;
  const target = model.dimension === 2 ? [image.spacing[0], ...model.spacing] : model.spacing;
  const size = box.map(([first, end]) => end - first),
    cells = resampledShape(size, image.spacing, target);
  if (cells.every((count, axis) => count === size[axis])) return null;
  const shown = (mm) => mm.map((one) => +one.toFixed(3)).join(' x ');
  if (Math.min(...cells) < 1 || product(cells) > MOST_CELLS) {
    throw new Refusal(
      `its voxels are ${shown(image.spacing)} mm, and at the model's ${shown(target)} mm it has ${cells.join(' x ')}, which a page cannot hold; use nnunet_octreenca predict`,
    );
  }
  return { spacing: target, cells };
}

/**
 * What of an image the network sees, and how.
 *
 * @param {object} model
 * @param {object} image in the file's axes; `data` and `shape` are turned into the plans'
 * @returns the image in the plans' axes and on the network's grid, with box, normalizers, mask,
 *   padded, own and begin; `source` is the image before, where it was resampled
 */
export function prepared(model, image) {
  if (image.channels !== model.schemes.length) {
    throw new Refusal(
      `it has ${image.channels} channel${image.channels > 1 ? 's' : ''}, but the model was trained with ${model.schemes.length}`,
    );
  }
  const order = model.transposeForward;
  if (!image.spacing && order[0] !== 0)
    throw new Refusal(`the model's axes are the image's ${order}, which a picture does not have`);
  const turned = {
    ...image,
    data: transposed(image.data, image.channels, image.shape, order),
    shape: order.map((axis) => image.shape[axis]),
    spacing: image.spacing && order.map((axis) => image.spacing[axis]),
  };
  const box = nonzeroBox(turned.data, turned.channels, turned.shape);
  const grid = gridOf(model, turned, box);
  const masked = model.schemes.some((s, c) => s === 'ZScoreNormalization' && model.useMask[c]);
  const mask = masked ? nonzeroMask(turned.data, turned.channels, turned.shape, box) : null;
  const normalizers = model.schemes.map((_, c) => normalizerOf(model, turned, c, box, mask));
  const seen = { ...turned, box, mask, normalizers };
  return placed(model, grid ? regridded(model, seen, grid) : seen);
}

/** The normalised box on the network's grid. */
function regridded(model, image, grid) {
  const { box, channels } = image,
    size = box.map(([first, end]) => end - first),
    cells = product(size);
  const values = new Float32Array(channels * cells);
  for (const [c, normalizer] of image.normalizers.entries()) {
    overBox(image.shape, box, c, (at, i) => {
      const change = !normalizer.masked || image.mask[i];
      values[c * cells + i] = change ? normalized(image.data[at], normalizer) : image.data[at];
    });
  }
  return {
    ...image,
    data: resampled(values, channels, size, grid.cells, model.data, [image.spacing, grid.spacing]),
    shape: grid.cells,
    spacing: grid.spacing,
    box: grid.cells.map((end) => [0, end]),
    mask: null,
    normalizers: image.normalizers.map(() => ({})),
    source: { data: image.data, shape: image.shape, spacing: image.spacing, box },
  };
}

/** Where the box lies amid zeros. */
function placed(model, image) {
  const size = image.box.map(([first, end]) => end - first);
  const context = model.dimension === 2 ? [1, ...model.context] : model.context;
  const own = model.dimension === 2 ? [1, size[1], size[2]] : size;
  const padded = own.map((cells, axis) => Math.max(cells, context[axis]));
  const begin = own.map((cells, axis) => Math.floor((padded[axis] - cells) / 2));
  return {
    ...image,
    padded,
    own,
    begin,
    parts: model.dimension === 2 ? size[0] : 1,
  };
}

/**
 * Reads bands of a part of a prepared image as the network takes them.
 *
 * @returns {(first: number, end: number, to: Float32Array) => void} fills [channels][slices][...]
 */
export function bandReader(model, image, part) {
  const [, height, width] = image.shape,
    cells = product(image.shape);
  const flat = model.dimension === 2;
  const [_padDepth, padHeight, padWidth] = image.padded,
    [beginZ, beginY, beginX] = image.begin;
  const [ownDepth, ownHeight, ownWidth] = image.own;
  const [boxZ, boxY, boxX] = image.box.map(([first]) => first);
  const boxWidth = ownWidth,
    boxHeight = ownHeight;
  const line = (channel, z, y, to, at) => {
    const normalizer = image.normalizers[channel];
    const from = channel * cells + ((boxZ + z) * height + boxY + y) * width + boxX;
    const inside = (z * boxHeight + y) * boxWidth;
    for (let x = 0; x < ownWidth; ++x) {
      const value = image.data[from + x];
      const change = !normalizer.masked || image.mask[inside + x];
      to[at + beginX + x] = change ? normalized(value, normalizer) : value;
    }
  };
  return (first, end, to) => {
    to.fill(0);
    const lines = flat ? 1 : padHeight;
    for (let c = 0; c < image.channels; ++c) {
      for (let slice = first; slice < end; ++slice) {
        for (let row = 0; row < lines; ++row) {
          const z = flat ? part : slice - beginZ,
            y = (flat ? slice : row) - beginY;
          if (!flat && (z < 0 || z >= ownDepth)) continue;
          if (y < 0 || y >= ownHeight) continue;
          line(c, z, y, to, ((c * (end - first) + slice - first) * lines + row) * padWidth);
        }
      }
    }
  };
}

/** The slices (rows in 2-D, planes in 3-D) of a part's input in which the image lies. */
export function ownSlices(model, image) {
  const axis = model.dimension === 2 ? 1 : 0;
  return [image.begin[axis], image.begin[axis] + image.own[axis]];
}

/**
 * Puts values of some slices of a part where they belong: [z][y][x] of the plans' axes.
 *
 * @param {Uint8Array|Float32Array} values [slices][...] as wide as the network's input
 */
export function placeSlices(model, image, part, first, values, whole) {
  const flat = model.dimension === 2;
  const [, height, width] = image.shape,
    [, padHeight, padWidth] = image.padded;
  const [beginZ, beginY, beginX] = image.begin,
    [, ownHeight, ownWidth] = image.own;
  const lines = flat ? 1 : padHeight,
    slices = values.length / (lines * padWidth);
  for (let i = 0; i < slices; ++i) {
    for (let row = 0; row < lines; ++row) {
      const y = (flat ? first + i : row) - beginY,
        z = flat ? part : first + i - beginZ;
      if (y < 0 || y >= ownHeight) continue;
      const from = (i * lines + row) * padWidth + beginX;
      const to = ((image.box[0][0] + z) * height + image.box[1][0] + y) * width + image.box[2][0];
      whole.set(values.subarray(from, from + ownWidth), to);
    }
  }
}

/**
 * Labels on the image's own grid, of mean logits on the network's.
 *
 * @param {Float32Array} logits [classes][z][y][x]
 * @returns {Uint8Array} [z][y][x] of the image before it was resampled
 */
export function restored(model, image, logits, classes) {
  const { shape, box, spacing } = image.source,
    size = box.map(([first, end]) => end - first);
  const values = resampled(logits, classes, image.shape, size, model.probabilities, [
    image.spacing,
    spacing,
  ]);
  const labels = labelsOfLogits(values, classes, model.regions),
    whole = new Uint8Array(product(shape));
  overBox(shape, box, 0, (at, i) => {
    whole[at] = labels[i];
  });
  return whole;
}
