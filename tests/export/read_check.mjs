// Reads and prepares files as the page does, in node: node read_check.mjs FOLDER < cases.json
// Prints what each file gave, or the sentence that refused it; bytes go to FOLDER/NAME.data.

import fs from 'node:fs';
import path from 'node:path';
import { canvasTellsTheTruth } from '../../nnunet_octreenca/export/page/jpeg.js';
import { isNifti, niftiOf, readNifti } from '../../nnunet_octreenca/export/page/nifti.js';
import { isPng, pngOf, readPng } from '../../nnunet_octreenca/export/page/png.js';
import { bandReader, prepared } from '../../nnunet_octreenca/export/page/preprocess.js';
import { Refusal } from '../../nnunet_octreenca/export/page/refusal.js';
import { isTiff, readTiff } from '../../nnunet_octreenca/export/page/tiff.js';

globalThis.ImageData ??= class {
  constructor(width, height) {
    this.data = new Uint8ClampedArray(4 * width * height);
  }
};

const [folder] = process.argv.slice(2);
const save = (name, array) =>
  fs.writeFileSync(
    path.join(folder, name),
    new Uint8Array(array.buffer, array.byteOffset, array.byteLength),
  );

async function decoded(bytes, channels) {
  if (isPng(bytes)) return readPng(bytes, channels);
  if (isTiff(bytes)) return readTiff(bytes, channels);
  if (await isNifti(bytes)) return readNifti(bytes);
  throw new Refusal('unknown');
}

function network(model, image) {
  const seen = prepared(model, image);
  const cells = seen.padded.reduce((a, b) => a * b),
    parts = [];
  const slices = seen.padded[model.dimension === 2 ? 1 : 0];
  for (let part = 0; part < seen.parts; ++part) {
    const whole = new Float32Array(image.channels * cells);
    // In two bands, as the engine asks for it.
    const middle = slices >> 1,
      read = bandReader(model, seen, part);
    for (const [first, end] of [
      [0, middle],
      [middle, slices],
    ]) {
      const band = new Float32Array((whole.length / slices) * (end - first));
      read(first, end, band);
      const each = band.length / image.channels,
        per = whole.length / image.channels;
      for (let c = 0; c < image.channels; ++c) {
        whole.set(band.subarray(c * each, (c + 1) * each), c * per + (first * per) / slices);
      }
    }
    parts.push(whole);
  }
  const all = new Float32Array(parts.length * parts[0].length);
  for (const [i, part] of parts.entries()) all.set(part, i * part.length);
  return { all, parts: parts.length, padded: seen.padded };
}

for (const { name, file, channels, model } of JSON.parse(fs.readFileSync(0, 'utf8'))) {
  const answer = { name };
  try {
    const image = await decoded(new Uint8Array(fs.readFileSync(file)), channels);
    Object.assign(answer, {
      shape: image.shape,
      channels: image.channels,
      type: image.data.constructor.name,
      spacing: image.spacing,
    });
    save(`${name}.data`, image.data);
    const cells = image.shape.reduce((a, b) => a * b);
    const labels = Uint8Array.from({ length: cells }, (_, i) => i % 7);
    const written = image.nifti
      ? await niftiOf(labels, image.nifti)
      : await pngOf(labels, image.shape[2], image.shape[1], 1);
    save(`${name}.labels`, new Uint8Array(await written.arrayBuffer()));
    if (model) {
      const { all, ...rest } = network(model, image);
      save(`${name}.network`, all);
      Object.assign(answer, rest);
    }
  } catch (error) {
    answer.refused = error instanceof Refusal ? error.message : null;
    answer.error = error.stack;
  }
  console.log(JSON.stringify(answer));
}

const honest = {
  putImageData(pixels) {
    this.pixels = pixels;
  },
  getImageData() {
    return this.pixels;
  },
};
const lying = {
  ...honest,
  getImageData() {
    return { data: this.pixels.data.map((v, i) => (i === 99 ? v ^ 1 : v)) };
  },
};
console.log(
  JSON.stringify({
    name: 'canvas',
    honest: canvasTellsTheTruth(honest),
    lying: canvasTellsTheTruth(lying),
  }),
);
