// One image in node, by the engine for web pages: node web_engine.mjs MODULE FOLDER < case.json
// Prints seconds of processor time and a hash of the labels for every line "go" on the input.

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import readline from 'node:readline';
import { Engine, runPass } from '../nnunet_octreenca/export/page/engine.js';

const [module, folder] = process.argv.slice(2);
const { shape, channels } = JSON.parse(fs.readFileSync(`${folder}/case.json`, 'utf8'));
const engine = new Engine({ simd128: fs.readFileSync(module) });
const network = engine.load(fs.readFileSync(`${folder}/network`));
const image = new Float32Array(new Uint8Array(fs.readFileSync(`${folder}/image`)).buffer);
const [, height, width] = shape;
const read = (first, end, to) => {
  for (let c = 0; c < channels; ++c) {
    const from = (c * height + first) * width,
      count = (end - first) * width;
    to.set(image.subarray(from, from + count), c * count);
  }
};
for await (const _ of readline.createInterface({ input: process.stdin })) {
  const labels = new Uint8Array(height * width),
    before = process.cpuUsage();
  runPass(engine, network, shape, [0, 0], read, [0, height], true, (first, values) =>
    labels.set(values, first * width),
  );
  const { user, system } = process.cpuUsage(before);
  console.log(
    JSON.stringify({
      seconds: (user + system) / 1e6,
      labels: createHash('sha256').update(labels).digest('hex'),
      megabytes: engine.memoryBytes / 1e6,
    }),
  );
}
