// The WebAssembly engine: networks on images that are handed over in bands, or step by step.

import { Refusal } from './refusal.js';

const BAND_CELLS = 1 << 18;
const HEADER = 7, // words before those of the levels, and words of a level (export/packing.py)
  ROW = 6;
const NO_FILE = 52; // WASI's "not supported": the engine opens nothing
const LOST =
  'the network lost its state (NaN or infinite values): the image lies far outside of what the model was trained on';

/** Of a mirrored copy's logits where several are averaged, as in inference/whole_image.py. */
const LOGIT_BOUND = 4;

/** All sets of axes to mirror, the unmirrored image first; nnU-Net's order. */
export function mirrorings(axes) {
  let sets = [[]];
  for (const axis of axes) sets = [...sets, ...sets.map((set) => [...set, axis])];
  return sets.sort((a, b) => a.length - b.length || compare(a, b));
}

function compare(a, b) {
  const at = a.findIndex((axis, i) => axis !== b[i]);
  return at < 0 ? 0 : a[at] - b[at];
}

export class Engine {
  /**
   * @param {{relaxed?: Uint8Array, simd128: Uint8Array}} modules
   */
  constructor(modules) {
    this.kind = ['relaxed', 'simd128'].find(
      (name) => modules[name] && WebAssembly.validate(modules[name]),
    );
    if (!this.kind) {
      throw new Refusal(
        'this browser has no WebAssembly SIMD; use Chrome 91, Edge 91, Firefox 113, Safari 16.4 or later',
      );
    }
    const files = { fd_close: () => NO_FILE, fd_seek: () => NO_FILE, fd_write: () => NO_FILE };
    const module = new WebAssembly.Module(modules[this.kind]);
    this.native = new WebAssembly.Instance(module, { wasi_snapshot_preview1: files }).exports;
    this.native._initialize();
  }

  get memoryBytes() {
    return this.native.memory.buffer.byteLength;
  }

  /** The address of `bytes` bytes. */
  allocate(bytes) {
    const at = this.native.octreenca_allocate(bytes) >>> 0;
    if (!at) throw new RangeError('out of memory');
    return at;
  }

  release(at) {
    this.native.octreenca_release(at);
  }

  /** Copies an array; returns its address. */
  put(array) {
    const at = this.allocate(array.byteLength);
    const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    new Uint8Array(this.native.memory.buffer, at, array.byteLength).set(bytes);
    return at;
  }

  /** float32 in the engine's memory; the view ends with the next call that allocates. */
  floats(at, count) {
    return new Float32Array(this.native.memory.buffer, at, count);
  }

  bytes(at, count) {
    return new Uint8Array(this.native.memory.buffer, at, count);
  }

  /** A network's packed numbers, kept as long as the engine; `channels` are those of every level. */
  load(words) {
    const at = this.put(words);
    const packed = new Uint32Array(this.native.memory.buffer, at, words.byteLength / 4);
    const [dimension, inputs, logits, background, levels] = packed;
    const channels = Array.from({ length: levels }, (_, level) => packed[HEADER + ROW * level]);
    return { at, dimension, channels, inputs, logits, background, classes: logits + background };
  }
}

/** The cells of a network's input, (z, y, x); z is 1 in 2-D. */
function geometry(network, shape) {
  const [depth, height, width] = shape;
  const flat = network.dimension === 2;
  return {
    depth,
    height,
    width,
    slices: flat ? height : depth,
    cells: flat ? width : height * width,
  };
}

/**
 * One pass of one network over a range of slices (rows in 2-D, planes in 3-D).
 *
 * @param {object} network of `Engine.load`
 * @param {number[]} shape (z, y, x) of the input
 * @param {number[]} seed low and high 32 bits
 * @param {(first: number, end: number, to: Float32Array) => void} read fills [n_in][slices][...]
 * @param {[number, number]} range wanted
 * @param {boolean} asLabels labels rather than logits
 * @param {(first: number, values: Uint8Array|Float32Array) => void} take labels [slices][...] or
 *   logits [classes][slices][...]; a view that ends with the call
 */
export function runPass(engine, network, shape, seed, read, range, asLabels, take) {
  const { depth, height, width, slices, cells } = geometry(network, shape);
  const native = engine.native;
  const stream = native.octreenca_open(network.at, depth, height, width, seed[0], seed[1]);
  const factor = native.octreenca_factor(stream);
  const rows = Math.max(factor, Math.floor(BAND_CELLS / cells / factor) * factor);
  const size = network.inputs * Math.min(rows, slices) * cells;
  const pixels = engine.allocate(4 * size);
  const fill = (first, end) =>
    read(first, end, engine.floats(pixels, network.inputs * (end - first) * cells));
  for (let first = 0; first < slices; first += rows) {
    const end = Math.min(first + rows, slices);
    fill(first, end);
    native.octreenca_pool(stream, pixels, first, end);
  }
  native.octreenca_prepare(stream);
  native.octreenca_begin(stream, range[0], range[1]);
  const last = native.octreenca_image_end(stream);
  let done = range[0];
  for (let first = native.octreenca_image_first(stream); first < last; first += rows) {
    const end = Math.min(first + rows, last);
    fill(first, end);
    const ready = native.octreenca_ready(stream, end);
    const count = (ready - done) * cells * (asLabels ? 1 : network.classes);
    const values = engine.allocate(asLabels ? count : 4 * count);
    native.octreenca_advance(
      stream,
      pixels,
      first,
      end,
      asLabels ? values : 0,
      asLabels ? 0 : values,
    );
    if (count) take(done, asLabels ? engine.bytes(values, count) : engine.floats(values, count));
    engine.release(values);
    done = ready;
  }
  const lost = native.octreenca_non_finite(stream);
  native.octreenca_close(stream);
  engine.release(pixels);
  if (lost) throw new Refusal(LOST);
}

/** Mirrors [outer][slices][height][width] in place: axes 0 for the first of `dimension`. */
export function mirror(values, outer, dimension, shape, axes) {
  const [depth, height, width] = shape;
  const flips = [0, 1, 2].map((axis) => axes.includes(axis - (3 - dimension)));
  const line = new values.constructor(width);
  const swapLines = (a, b) => {
    line.set(values.subarray(a, a + width));
    values.copyWithin(a, b, b + width);
    values.set(line, b);
  };
  for (let o = 0; o < outer; ++o) {
    const begin = o * depth * height * width;
    for (let z = 0; z < depth; ++z) {
      const toZ = flips[0] ? depth - 1 - z : z;
      for (let y = 0; y < height; ++y) {
        const toY = flips[1] ? height - 1 - y : y;
        const from = z * height + y,
          to = toZ * height + toY;
        if (from < to) swapLines(begin + from * width, begin + to * width);
      }
    }
    if (!flips[2]) continue;
    for (let at = begin; at < begin + depth * height * width; at += width) {
      values.subarray(at, at + width).reverse();
    }
  }
}

/** The shape (z, y, x) of some slices. */
function sliceShape(dimension, shape, count) {
  return dimension === 2 ? [1, count, shape[2]] : [count, shape[1], shape[2]];
}

/**
 * Labels of a range of slices: all networks, seeds and mirrored copies averaged.
 *
 * @param {{network: object, seed: number[]}[]} members
 * @param {number[][]} mirrored sets of axes, see `mirrorings`
 * @param {(logits: Float32Array, classes: number) => Uint8Array} labelsOf of mean logits
 * @param {boolean} direct whether the engine's own labels will do where there is a single pass
 * @param {(slices: number) => void} progress slices done, of range times passes
 */
export function segmentRange(
  engine,
  members,
  mirrored,
  shape,
  read,
  range,
  labelsOf,
  direct,
  progress,
) {
  const first = members[0].network;
  const { slices, cells } = geometry(first, shape);
  const count = range[1] - range[0];
  const passes = members.length * mirrored.length;
  if (passes === 1 && direct) {
    const labels = new Uint8Array(count * cells);
    runPass(engine, first, shape, members[0].seed, read, range, true, (at, values) => {
      labels.set(values, (at - range[0]) * cells);
      progress(values.length / cells);
    });
    return labels;
  }
  let total = null;
  for (const { network, seed } of members) {
    let sum = null; // of the member's copies: nnU-Net's order of additions
    for (const axes of mirrored) {
      const turned = axes.includes(0);
      const wanted = turned ? [slices - range[1], slices - range[0]] : range;
      const readMirrored = (a, b, to) => {
        if (turned) read(slices - b, slices - a, to);
        else read(a, b, to);
        mirror(
          to,
          network.inputs,
          network.dimension,
          sliceShape(network.dimension, shape, b - a),
          axes,
        );
      };
      const logits = new Float32Array(network.classes * count * cells);
      runPass(engine, network, shape, seed, readMirrored, wanted, false, (at, values) => {
        const part = values.length / network.classes;
        for (let k = 0; k < network.classes; ++k) {
          const to = k * count * cells + (at - wanted[0]) * cells;
          logits.set(values.subarray(k * part, (k + 1) * part), to);
        }
        progress(part / cells);
      });
      mirror(
        logits,
        network.classes,
        network.dimension,
        sliceShape(network.dimension, shape, count),
        axes,
      );
      if (mirrored.length > 1) bound(logits);
      sum = added(sum, logits);
    }
    total = added(total, sum);
  }
  for (let i = 0; i < total.length; ++i) total[i] /= passes;
  requireFinite(total);
  return labelsOf(total, first.classes);
}

function bound(logits) {
  requireFinite(logits);
  for (let i = 0; i < logits.length; ++i) {
    logits[i] = Math.min(Math.max(logits[i], -LOGIT_BOUND), LOGIT_BOUND);
  }
}

function requireFinite(logits) {
  if (!logits.every(Number.isFinite)) throw new Refusal(LOST);
}

function added(sum, values) {
  if (sum === null) return values;
  for (let i = 0; i < sum.length; ++i) sum[i] += values[i];
  return sum;
}

/**
 * Walks the octree, all of it in memory.
 *
 * @param {(frame: object) => void} show level, step, shape and `channel(index)`, a Float32Array
 */
export function walk(engine, network, shape, seed, read, show) {
  const { depth, height, width, slices, cells } = geometry(network, shape);
  const native = engine.native;
  const pixels = engine.allocate(4 * network.inputs * slices * cells);
  read(0, slices, engine.floats(pixels, network.inputs * slices * cells));
  const walker = native.octreenca_walk(network.at, pixels, depth, height, width, seed[0], seed[1]);
  const place = engine.allocate(20),
    values = engine.allocate(4 * slices * cells);
  const frame = () => {
    native.octreenca_walk_place(walker, place);
    const [level, step, ...here] = new Int32Array(native.memory.buffer, place, 5);
    show({
      level,
      step,
      shape: here,
      channel: (index) => {
        native.octreenca_walk_channel(walker, index, values);
        return engine.floats(values, here[0] * here[1] * here[2]).slice();
      },
    });
  };
  frame();
  while (native.octreenca_walk_advance(walker)) frame();
  native.octreenca_walk_end(walker);
  for (const at of [values, place, pixels]) engine.release(at);
}
