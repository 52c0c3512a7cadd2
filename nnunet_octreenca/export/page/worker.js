// A worker: reads files, segments ranges of slices, walks. One engine each; a page opened from a
// file shares no memory between workers.

import { Engine, mirrorings, segmentRange, walk } from './engine.js';
import { frameOf } from './frames.js';
import { isJpeg, readJpeg } from './jpeg.js';
import { labelsOfLogits } from './labels.js';
import { isNifti, readNifti } from './nifti.js';
import { isPng, readPng } from './png.js';
import { bandReader, ownSlices, prepared } from './preprocess.js';
import { Refusal } from './refusal.js';
import { inflated } from './streams.js';
import { isTiff, readTiff } from './tiff.js';

const MOST_WATCHED = 4e6; // cells that are walked all at once, some 100 bytes each

let engine, model, networks, image;

const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const unpacked = (text) => inflated([bytesOf(text)], 'deflate');

async function start({ modules, weights, model: told }) {
  engine = new Engine({
    relaxed: await unpacked(modules.relaxed),
    simd128: await unpacked(modules.simd128),
  });
  model = told;
  networks = [];
  for (const text of weights) networks.push(engine.load(await unpacked(text)));
  return { kind: engine.kind };
}

async function decoded(bytes, channels) {
  if (!bytes.length) throw new Refusal('it is empty');
  if (isPng(bytes)) return readPng(bytes, channels);
  if (isJpeg(bytes)) return readJpeg(bytes, channels);
  if (isTiff(bytes)) return readTiff(bytes, channels);
  if (await isNifti(bytes)) return readNifti(bytes);
  throw new Refusal('it is no PNG, JPEG, TIFF or NIfTI file');
}

async function contentOf(file) {
  try {
    return new Uint8Array(await file.arrayBuffer());
  } catch (error) {
    if (isMemory(error)) throw error;
    throw new Refusal(`the browser cannot read it (${error.message}); choose it again`);
  }
}

/** An image of one file, or of one file a channel. */
async function read({ files }) {
  const images = [];
  for (const file of files) {
    try {
      images.push(await decoded(await contentOf(file), model.schemes.length));
    } catch (error) {
      throw named(error, file.name);
    }
  }
  try {
    return { image: prepared(model, joined(images)) };
  } catch (error) {
    throw named(error, files[0].name);
  }
}

function named(error, name) {
  if (isMemory(error)) return error;
  const reason = error instanceof Refusal ? error.message : `it is damaged (${error.message})`;
  return new Refusal(`${name} cannot be segmented: ${reason}.`);
}

function joined(images) {
  const [first] = images;
  if (images.length === 1) return first;
  for (const image of images) {
    const same = (a, b) => a.every((value, axis) => Math.abs(value - b[axis]) < 1e-3);
    if (!image.spacing || !same(image.shape, first.shape) || !same(image.spacing, first.spacing)) {
      throw new Refusal(
        `its channels differ in size: ${first.shape.join(' x ')} and ${image.shape.join(' x ')} voxels`,
      );
    }
  }
  const length = images.reduce((sum, image) => sum + image.data.length, 0);
  const data = new (first.data.constructor === Uint8Array ? Uint8Array : Float32Array)(length);
  let at = 0;
  for (const image of images) {
    data.set(image.data, at);
    at += image.data.length;
  }
  return { ...first, channels: images.reduce((sum, image) => sum + image.channels, 0), data };
}

/** Keeps the image that is then segmented or watched. */
function hold(message) {
  image = message.image;
  return {};
}

/** Labels of a range, or mean logits where they are still to be resampled. */
function segment({ part, range, folds, mirrored, logits }) {
  const members = model.members
    .filter(({ network }) => network < folds)
    .map(({ network, seed }) => ({ network: networks[network], seed }));
  const regions = model.regions;
  const values = segmentRange(
    engine,
    members,
    mirrored ? mirrorings(model.mirrorAxes) : [[]],
    image.padded,
    bandReader(model, image, part),
    range,
    (means, classes) => (logits ? means : labelsOfLogits(means, classes, regions)),
    !regions && !logits,
    (slices) => postMessage({ progress: slices }),
  );
  return { values, classes: members[0].network.classes, memory: engine.memoryBytes };
}

/** Frames of a part's walk; of a volume the plane `at` of the box. */
function watch({ part, at }) {
  const cells = image.padded.reduce((a, b) => a * b);
  if (cells > MOST_WATCHED) {
    throw new Refusal(
      `the image has ${(cells / 1e6).toFixed(1)} million cells; the automaton can be watched on ${MOST_WATCHED / 1e6} million or fewer.`,
    );
  }
  const { network, seed } = model.members[0];
  const slice = model.dimension === 3 ? ownSlices(model, image)[0] + at + 0.5 : 0;
  walk(engine, networks[network], image.padded, seed, bandReader(model, image, part), (frame) => {
    const shown = frameOf(model, networks[network], frame, slice / image.padded[0]);
    postMessage({ frame: shown }, [shown.rgba.buffer]);
  });
  return {};
}

function isMemory(error) {
  return (
    error instanceof RangeError ||
    error instanceof WebAssembly.RuntimeError ||
    /memory|allocation/i.test(error?.message ?? '')
  );
}

const COMMANDS = { start, read, hold, segment, watch };

self.onmessage = async ({ data }) => {
  try {
    const done = await COMMANDS[data.command](data);
    const moved = [done.values, done.image?.data, done.image?.source?.data].filter(Boolean);
    postMessage(
      { done },
      moved.map((array) => array.buffer),
    );
  } catch (error) {
    postMessage({
      failed: {
        message: String(error?.message ?? error),
        memory: isMemory(error) && !(error instanceof Refusal),
      },
    });
  }
};
