// Labels from logits, by nnU-Net's rules.

/**
 * @param {Float32Array} logits [classes][cells]
 * @param {number[]|null} regions the label of each region, a later one covering an earlier one
 *   where its logit is above 0; null: the class of the largest logit, the first of equal ones
 * @returns {Uint8Array} [cells]
 */
export function labelsOfLogits(logits, classes, regions) {
  const cells = logits.length / classes;
  const labels = new Uint8Array(cells);
  if (regions) {
    regions.forEach((label, k) => {
      for (let i = 0; i < cells; ++i) if (logits[k * cells + i] > 0) labels[i] = label;
    });
    return labels;
  }
  const largest = logits.slice(0, cells);
  for (let k = 1; k < classes; ++k) {
    for (let i = 0; i < cells; ++i) {
      const value = logits[k * cells + i];
      if (value > largest[i]) {
        largest[i] = value;
        labels[i] = k;
      }
    }
  }
  return labels;
}

/** Cells of every label, [256]. */
export function countLabels(labels) {
  const counts = new Array(256).fill(0);
  for (const label of labels) ++counts[label];
  return counts;
}
