// Segments with the engine for web pages in node: node engine_check.mjs FOLDER MODULE < cases.json
// FOLDER holds what `test_web_engine.py` wrote; prints what was found as JSON.

import fs from 'node:fs';
import path from 'node:path';
import {
  Engine,
  mirrorings,
  runPass,
  segmentRange,
  walk,
} from '../../nnunet_octreenca/export/page/engine.js';
import { labelsOfLogits } from '../../nnunet_octreenca/export/page/labels.js';

const [folder, module] = process.argv.slice(2);
const engine = new Engine({ simd128: fs.readFileSync(module) });
const bytes = (name) => fs.readFileSync(path.join(folder, name));
const floats = (name) => new Float32Array(new Uint8Array(bytes(name)).buffer);

function reader(image, channels, shape, dimension) {
  const [depth, height, width] = shape;
  const slices = dimension === 2 ? height : depth,
    cells = dimension === 2 ? width : height * width;
  return (first, end, to) => {
    for (let c = 0; c < channels; ++c) {
      const from = (c * slices + first) * cells;
      to.set(image.subarray(from, from + (end - first) * cells), c * (end - first) * cells);
    }
  };
}

for (const one of JSON.parse(fs.readFileSync(0, 'utf8'))) {
  const networks = one.models.map((name) => engine.load(bytes(name)));
  const [network] = networks;
  const slices = network.dimension === 2 ? one.shape[1] : one.shape[0];
  const cells = one.shape.reduce((a, b) => a * b, 1) / slices;
  const read = reader(floats(one.image), network.inputs, one.shape, network.dimension);
  const logits = new Float32Array(network.classes * slices * cells);
  for (const range of one.ranges) {
    runPass(engine, network, one.shape, one.seed, read, range, false, (at, values) => {
      const part = values.length / network.classes;
      for (let k = 0; k < network.classes; ++k) {
        logits.set(values.subarray(k * part, (k + 1) * part), (k * slices + at) * cells);
      }
    });
  }
  fs.writeFileSync(path.join(folder, `${one.name}.logits`), logits);
  const members = networks.map((it) => ({ network: it, seed: one.seed }));
  const axes = [...Array(network.dimension).keys()];
  const parts = one.ranges.map((range) =>
    segmentRange(
      engine,
      members,
      mirrorings(axes),
      one.shape,
      read,
      range,
      (values, classes) => labelsOfLogits(values, classes, one.regions),
      !one.regions,
      () => {},
    ),
  );
  fs.writeFileSync(path.join(folder, `${one.name}.mean`), Buffer.concat(parts));
  const direct = segmentRange(
    engine,
    members.slice(0, 1),
    [[]],
    one.shape,
    read,
    [0, slices],
    (values, classes) => labelsOfLogits(values, classes, one.regions),
    !one.regions,
    () => {},
  );
  fs.writeFileSync(path.join(folder, `${one.name}.labels`), direct);
  let last,
    frames = 0;
  walk(engine, network, one.shape, one.seed, read, (frame) => {
    ++frames;
    if (frame.level === 0) last = frame.channel(network.inputs);
  });
  fs.writeFileSync(path.join(folder, `${one.name}.walk`), last);
  console.log(JSON.stringify({ name: one.name, frames }));
}
