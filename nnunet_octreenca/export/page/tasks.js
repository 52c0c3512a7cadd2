// One image cut into work for several workers, and its labels put together.

import { countLabels } from './labels.js';
import { ownSlices, placeLabels, transposed } from './preprocess.js';

const MOST_WORKERS = 8;
const OVERLAPS = 4; // a range is that many times as high as what is computed twice at its ends

export const workers = () => Math.max(1, Math.min(navigator.hardwareConcurrency || 2, MOST_WORKERS));

/** Parts and ranges of slices. */
export function tasksOf(model, image, count) {
  const [first, end] = ownSlices(model, image);
  if (image.parts > 1) return Array.from({ length: image.parts }, (_, part) => ({ part, range: [first, end] }));
  const pieces = Math.max(1, Math.min(count, Math.floor((end - first) / (OVERLAPS * Math.max(model.steps[0], 1)))));
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
    if (message.progress) progress((done += message.progress) / total);
  };
  const messages = tasks.map((task) => ({ command: 'segment', ...task, ...options }));
  const answers = await pool.all(messages, note, count, { command: 'hold', image });
  const labels = new Uint8Array(image.shape.reduce((a, b) => a * b));
  answers.forEach((answer, i) => placeLabels(model, image, tasks[i].part, tasks[i].range[0], answer.labels, labels));
  return {
    labels: transposed(labels, 1, image.shape, model.transposeBackward),
    counts: countLabels(labels),
    memory: answers.reduce((sum, answer) => sum + answer.memory, 0),
  };
}
