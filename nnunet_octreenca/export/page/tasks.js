// One image cut into work for several workers, and its labels put together.

import { countLabels } from './labels.js';
import { product } from './normalise.js';
import { ownSlices, placeSlices, restored, transposed } from './preprocess.js';

const MOST_WORKERS = 8;
const OVERLAPS = 4; // a range is that many times as high as what is computed twice at its ends

export const workers = () =>
  Math.max(1, Math.min(navigator.hardwareConcurrency || 2, MOST_WORKERS));

/** Parts and ranges of slices. */
export function tasksOf(model, image, count) {
  const [first, end] = ownSlices(model, image);
  if (image.parts > 1)
    return Array.from({ length: image.parts }, (_, part) => ({ part, range: [first, end] }));
  const pieces = Math.max(
    1,
    Math.min(count, Math.floor((end - first) / (OVERLAPS * Math.max(model.steps[0], 1)))),
  );
  const at = (piece) => first + Math.floor(((end - first) * piece) / pieces);
  return Array.from({ length: pieces }, (_, i) => ({ part: 0, range: [at(i), at(i + 1)] }));
}

/**
 * @param {object} pool
 * @param {{folds: number, mirrored: boolean}} options
 * @param {(share: number) => void} progress
 * @returns labels in the file's axes and cells of every label
 */
export async function segmentImage(pool, model, image, options, progress, count = workers()) {
  const tasks = tasksOf(model, image, count);
  const members = model.members.filter(({ network }) => network < options.folds).length;
  const passes = members * (options.mirrored ? 2 ** model.mirrorAxes.length : 1);
  const total = passes * tasks.reduce((sum, { range }) => sum + range[1] - range[0], 0);
  let done = 0;
  const note = (message) => {
    done += message.progress ?? 0;
    progress(done / total);
  };
  const logits = Boolean(image.source);
  const messages = tasks.map((task) => ({ command: 'segment', ...task, ...options, logits }));
  const before = { command: 'hold', image: { ...image, source: null } };
  const answers = await pool.all(messages, note, count, before);
  const labels = logits
    ? resampledLabels(model, image, tasks, answers)
    : new Uint8Array(product(image.shape));
  if (!logits) {
    for (const [i, one] of answers.entries()) {
      placeSlices(model, image, tasks[i].part, tasks[i].range[0], one.values, labels);
    }
  }
  return {
    labels: transposed(labels, 1, (image.source ?? image).shape, model.transposeBackward),
    counts: countLabels(labels),
    memory: answers.reduce((sum, answer) => sum + answer.memory, 0),
  };
}

/** Logits of all parts put together, then taken back to the image's grid. */
function resampledLabels(model, image, tasks, answers) {
  const cells = product(image.shape),
    { classes } = answers[0];
  const logits = new Float32Array(classes * cells);
  answers.forEach(({ values }, i) => {
    const part = values.length / classes;
    for (let k = 0; k < classes; ++k) {
      const own = values.subarray(k * part, (k + 1) * part);
      placeSlices(
        model,
        image,
        tasks[i].part,
        tasks[i].range[0],
        own,
        logits.subarray(k * cells, (k + 1) * cells),
      );
    }
  });
  return restored(model, image, logits, classes);
}
