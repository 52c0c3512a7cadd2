// nnU-Net's resampling to another grid: splines of order 0, 1 and 3 as scipy's zoom computes them
// (grid mode, borders repeated), axis by axis, in double precision, float32 between the axes.

import { Refusal } from './refusal.js';

const PADDING = 12; // cells that scipy repeats beyond a border before it filters
const POLE = Math.sqrt(3) - 2,
  GAIN = 6; // of the cubic spline
const KERNELS = ['nearest', 'linear', 'cubic'];

/** The axis that is resampled after the planes across it; null for none. */
export function separateAxis(rule, spacing, target) {
  const uneven = (mm) => Math.max(...mm) / Math.min(...mm) > rule.threshold;
  let deciding = null;
  if (rule.force === null) deciding = [spacing, target].find(uneven) ?? null;
  else if (rule.force) deciding = spacing;
  if (!deciding) return null;
  const coarsest = [0, 1, 2].filter((axis) => Math.max(...deciding) / deciding[axis] === 1);
  return coarsest.length === 1 ? coarsest[0] : null;
}

/** Spline coefficients of samples, in place (Unser 1999; scipy's reflecting borders). */
function filtered(c) {
  const n = c.length,
    first = c[0],
    far = POLE ** n;
  let power = POLE,
    sum = first + far * c[n - 1];
  for (let i = 1; i < n; ++i, power *= POLE) sum += power * (c[i] + far * c[n - 1 - i]);
  c[0] = (sum * POLE) / (1 - far * far) + first;
  for (let i = 1; i < n; ++i) c[i] += POLE * c[i - 1];
  c[n - 1] *= POLE / (POLE - 1);
  for (let i = n - 2; i >= 0; --i) c[i] = POLE * (c[i + 1] - c[i]);
  for (let i = 0; i < n; ++i) c[i] *= GAIN;
  return c;
}

/** A function from a line of `n` samples to one of `m`. */
function lineOf(kernel, n, m) {
  const centre = (i) => (i + 0.5) * (n / m) - 0.5;
  const clipped = (i) => Math.min(Math.max(centre(i), 0), n - 1);
  if (kernel === 'nearest') {
    const at = Array.from({ length: m }, (_, i) => Math.min(Math.floor(clipped(i) + 0.5), n - 1));
    return (from, to) =>
      at.forEach((source, i) => {
        to[i] = from[source];
      });
  }
  if (kernel === 'linear') {
    return (from, to) => {
      for (let i = 0; i < m; ++i) {
        const at = clipped(i),
          low = Math.min(Math.floor(at), Math.max(n - 2, 0)),
          part = at - low;
        to[i] = part ? (1 - part) * from[low] + part * from[low + 1] : from[low];
      }
    };
  }
  const padded = new Float64Array(n + 2 * PADDING);
  return (from, to) => {
    padded.fill(from[0], 0, PADDING);
    padded.set(from, PADDING);
    padded.fill(from[n - 1], PADDING + n);
    const c = filtered(padded);
    for (let i = 0; i < m; ++i) {
      const at = centre(i),
        low = Math.floor(at),
        t = at - low,
        k = low - 1 + PADDING;
      to[i] =
        ((1 - t) ** 3 * c[k] +
          (4 - 6 * t ** 2 + 3 * t ** 3) * c[k + 1] +
          (1 + 3 * t + 3 * t ** 2 - 3 * t ** 3) * c[k + 2] +
          t ** 3 * c[k + 3]) /
        6;
    }
  };
}

/** One axis of [outer][shape] to `cells`. */
function alongAxis(values, outer, shape, axis, cells, kernel) {
  const n = shape[axis],
    line = lineOf(kernel, n, cells);
  const after = shape.slice(axis + 1).reduce((a, b) => a * b, 1);
  const before = outer * shape.slice(0, axis).reduce((a, b) => a * b, 1);
  const out = new Float32Array(before * cells * after),
    from = new Float64Array(n),
    to = new Float64Array(cells);
  for (let b = 0; b < before; ++b) {
    for (let a = 0; a < after; ++a) {
      for (let i = 0; i < n; ++i) from[i] = values[(b * n + i) * after + a];
      line(from, to);
      for (let i = 0; i < cells; ++i) out[(b * cells + i) * after + a] = to[i];
    }
  }
  return out;
}

/** Smallest and largest value of every slice of every channel: [channel][slice], one slice for all. */
function extremesOf(values, channels, shape, axis) {
  const slices = axis === null ? 1 : shape[axis],
    low = [],
    high = [];
  for (let i = 0; i < channels * slices; ++i) {
    low.push(Infinity);
    high.push(-Infinity);
  }
  eachSlice(values, channels, shape, axis, (at, slice) => {
    if (values[at] < low[slice]) low[slice] = values[at];
    if (values[at] > high[slice]) high[slice] = values[at];
  });
  return { low, high };
}

function eachSlice(values, channels, shape, axis, work) {
  const cells = values.length / channels,
    slices = axis === null ? 1 : shape[axis];
  const after = axis === null ? cells : shape.slice(axis + 1).reduce((a, b) => a * b, 1);
  for (let at = 0; at < values.length; ++at) {
    const channel = Math.floor(at / cells);
    work(at, channel * slices + (axis === null ? 0 : Math.floor(at / after) % slices));
  }
}

/**
 * @param {Float32Array} values [channels][shape]
 * @param {number[]} shape (z, y, x)
 * @param {number[]} target likewise
 * @param {object} rule kernel, inPlane, apart, force, threshold of the plans
 * @param {number[][]} spacings mm of the source's and of the target's cells
 * @returns {Float32Array} [channels][target]; clipped to the source's range where splines overshoot
 */
export function resampled(values, channels, shape, target, rule, spacings) {
  const separate = separateAxis(rule, ...spacings);
  const kernels = [0, 1, 2].map((axis) =>
    separate === null ? rule.kernel : axis === separate ? rule.apart : rule.inPlane,
  );
  for (const kernel of kernels) {
    if (!KERNELS.includes(kernel)) {
      throw new Refusal(
        `the model resamples with ${kernel}, which this page does not; use nnunet_octreenca predict`,
      );
    }
  }
  const bounds = kernels.includes('cubic') ? extremesOf(values, channels, shape, separate) : null;
  const here = [...shape];
  const along = (axis) => {
    if (here[axis] !== target[axis]) {
      values = alongAxis(values, channels, here, axis, target[axis], kernels[axis]);
      here[axis] = target[axis];
    }
  };
  for (const axis of [0, 1, 2]) if (axis !== separate) along(axis);
  if (bounds) {
    values = values.slice();
    eachSlice(values, channels, here, separate, (at, slice) => {
      values[at] = Math.min(Math.max(values[at], bounds.low[slice]), bounds.high[slice]);
    });
  }
  if (separate !== null) along(separate);
  return values;
}
