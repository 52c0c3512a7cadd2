// The page: files in, labels out, everything shown.

import { casesOf, csvOf, rowsOf, sizeOf, stemOf } from './cases.js';
import { niftiOf } from './nifti.js';
import { AXES, Painter, placedFrame, planeOf, windowOf } from './picture.js';
import { PlaneView } from './plane.js';
import { pngOf } from './png.js';
import { Cancelled, OutOfMemory, Pool } from './pool.js';
import { transposed } from './preprocess.js';
import { legendRows, tableRows } from './tables.js';
import { segmentImage } from './tasks.js';

const FRAME_MS = 70;
const $ = (id) => document.getElementById(id);
const page = JSON.parse($('model').textContent);
const model = page.model;
const pool = new Pool(page.worker, { modules: page.modules, weights: page.weights, model });
const volumes = model.dimension === 3 || !model.natural;

let results = [];
let current = null; // the case on the screen: name, shown, image, labels, views
let busy = false;

const say = (text, problem = false) => {
  $('status').textContent = text;
  $('status').classList.toggle('problem', problem);
};

function setBusy(state) {
  busy = state;
  $('running').hidden = !state;
  for (const id of ['files', 'example']) $(id).disabled = state;
  for (const id of ['watch', 'save-labels', 'save-overlay']) $(id).disabled = state || !current;
  for (const button of document.querySelectorAll('#table button')) button.disabled = state;
  document.body.dataset.state = state ? 'busy' : 'ready';
}

/** Does one thing at a time; what goes wrong is said in a sentence. */
async function doing(work) {
  if (busy) return;
  setBusy(true);
  $('progress').removeAttribute('value');
  try {
    await work();
  } catch (error) {
    say(error instanceof Cancelled ? 'Cancelled.' : error.message, !(error instanceof Cancelled));
  } finally {
    setBusy(false);
  }
}

// ------------------------------------------------------------------ segmenting

const options = () => ({
  folds: $('folds').checked ? model.folds.length : 1,
  mirrored: $('mirror').checked && model.mirrorAxes.length > 0,
});

async function segmented(image) {
  const progress = (share) => {
    $('progress').value = share;
  };
  try {
    return await segmentImage(pool, model, image, options(), progress);
  } catch (error) {
    if (!(error instanceof OutOfMemory)) throw error;
    say('Memory ran out; once more, with a single worker …');
    return segmentImage(pool, model, image, options(), progress, 1);
  }
}

async function segmentCase(one) {
  forget();
  say(`Reading ${one.name} …`);
  const { image } = await pool.ask({ command: 'read', files: one.files });
  say(`Segmenting ${one.name} …`);
  const began = performance.now();
  const found = await segmented(image);
  const seconds = (performance.now() - began) / 1000;
  return { ...one, ...display(image), image, ...found, seconds };
}

/** The image in its file's axes, on its own grid. */
function display(image) {
  const back = model.transposeBackward,
    { data, shape, spacing } = image.source ?? image;
  return {
    shape: back.map((axis) => shape[axis]),
    spacing: spacing && back.map((axis) => spacing[axis]),
    flat: image.flat ?? !spacing,
    data: transposed(data, image.channels, shape, back),
  };
}

const summary = (one) => {
  const shape = one.shape.slice(one.shape[0] === 1 ? 1 : 0).reverse();
  return `${one.name}: ${shape.join(' x ')}, segmented in ${one.seconds.toFixed(2)} s (WebAssembly ${pool.kind}, ${(one.memory / 1e6).toFixed(0)} MB). Nothing has left this device.`;
};

async function segmentFiles(files) {
  const cases = casesOf(files, volumes && model.schemes.length > 1);
  results = [];
  for (const one of cases) {
    try {
      const done = await segmentCase(one);
      showCase(done);
      // Pixels of one case at a time are kept; the others' are read again when they are shown.
      results.push({ ...done, image: null, data: null });
      say(summary(done));
    } catch (error) {
      forget();
      if (error instanceof Cancelled) throw error;
      results.push({ ...one, problem: error.message });
      say(error.message, true);
    }
    if (cases.length > 1) showTable();
  }
  pool.rest();
  if (cases.length === 1) $('cases').hidden = true;
  else {
    const wrong = results.filter((one) => one.problem).length;
    say(
      `${results.length - wrong} of ${results.length} images segmented${wrong ? '; the table says what was wrong with the others' : ''}.`,
      wrong > 0,
    );
  }
}

async function showAgain(one) {
  forget();
  say(`Reading ${one.name} …`);
  const { image } = await pool.ask({ command: 'read', files: one.files });
  showCase({ ...one, ...display(image), image });
  say(summary(one));
}

// ------------------------------------------------------------------ showing

/** Nothing is on the screen, and there is nothing to save: what is next may fail. */
function forget() {
  for (const view of current?.views ?? []) view.observer.disconnect();
  current = null;
  $('views').replaceChildren();
  $('result').hidden = true;
}

function showCase(one) {
  const flat = one.shape[0] === 1;
  const painter = new Painter(
    { data: one.data, shape: one.shape, channels: one.image.channels, window: windowOf(one.data) },
    !flat,
  );
  const spacing = one.spacing ?? [1, 1, 1];
  $('views').classList.toggle('planes', !flat);
  $('shown').textContent = one.name;
  $('result').hidden = false;
  current = { ...one, painter, views: [], indices: [] };
  for (const axis of flat ? [0] : [0, 1, 2]) addView(axis, spacing, flat);
  $('save-labels').textContent = one.image.nifti ? 'Save labels (NIfTI)' : 'Save labels (PNG)';
  const turned = model.transposeForward.some((axis, i) => axis !== i);
  $('watch').hidden = turned && !flat;
  showLegend();
}

function addView(axis, spacing, flat) {
  const plane = planeOf(current.shape, axis, 0),
    cells = current.shape[axis];
  const figure = document.createElement('figure'),
    canvas = document.createElement('canvas');
  const name = flat ? 'Image with classes' : `Plane across ${AXES[axis]} with classes`;
  canvas.tabIndex = 0;
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', `${name}; plus and minus zoom, arrow keys move, 0 shows all`);
  const size = [plane.width * spacing[plane.columns], plane.height * spacing[plane.rows]];
  canvas.style.aspectRatio = size.join(' / ');
  figure.append(canvas);
  $('views').append(figure);
  const view = new PlaneView(canvas, ...size);
  const number = current.views.push(view) - 1;
  Object.assign(view, { axis });
  current.indices[axis] = cells >> 1;
  if (!flat) figure.append(sliderOf(axis, cells, number));
  paint(view);
}

function sliderOf(axis, cells, number) {
  const caption = document.createElement('figcaption'),
    slider = document.createElement('input');
  const place = document.createElement('output');
  Object.assign(slider, { type: 'range', min: 0, max: cells - 1, value: current.indices[axis] });
  slider.setAttribute('aria-label', `Plane across ${AXES[axis]}`);
  const tell = () => {
    place.value = `${AXES[axis]} ${+slider.value + 1} of ${cells}`;
  };
  slider.addEventListener('input', () => {
    current.indices[axis] = +slider.value;
    tell();
    paint(current.views[number]);
  });
  tell();
  caption.append(slider, place);
  return caption;
}

const planeShown = (view) => planeOf(current.shape, view.axis, current.indices[view.axis]);

function paint(view) {
  const plane = planeShown(view);
  view.base = current.painter.image(plane);
  view.mask = current.painter.classes(plane, current.labels, model.colours);
  blend(view);
}

const blend = (view) =>
  view.show([
    { bitmap: view.base, opacity: 1 },
    { bitmap: view.mask, opacity: +$('opacity').value },
  ]);

function showLegend() {
  const [, unit] = sizeOf(0, current.spacing, current.flat);
  $('size-head').textContent = unit === 'pixels' ? 'Pixels' : unit;
  $('legend').tBodies[0].replaceChildren(...legendRows(current, model));
}

function showTable() {
  const [head, ...rows] = tableRows(results, model.names, busy, (one) =>
    doing(() => showAgain(one)),
  );
  $('table').tHead.replaceChildren(head);
  $('table').tBodies[0].replaceChildren(...rows);
  $('cases').hidden = false;
}

// ------------------------------------------------------------------ watching

async function watch() {
  const view = current.views[0],
    flat = current.shape[0] === 1;
  const { image } = current,
    index = current.indices[0];
  // The plane of the box, or of the network's grid where that is another.
  const { box } = image.source ?? image,
    planes = image.box[0][1] - image.box[0][0];
  const share = (index + 0.5 - box[0][0]) / (box[0][1] - box[0][0]);
  const plane = Math.min(Math.max(Math.floor(share * planes), 0), planes - 1);
  const [part, at] = model.dimension === 2 ? [plane, 0] : [0, plane];
  let stopped = false,
    showing = Promise.resolve();
  const note = ({ frame }) => {
    showing = showing.then(async () => {
      if (stopped) return;
      showFrame(view, frame, !flat);
      await new Promise((done) => setTimeout(done, FRAME_MS));
    });
  };
  watching = () => {
    stopped = true;
  };
  try {
    await pool.ask({ command: 'hold', image: { ...image, source: null } });
    await pool.ask({ command: 'watch', part, at }, note);
    await showing;
    if (stopped) throw new Cancelled('cancelled');
    say(summary(current));
  } finally {
    watching = null;
    blend(view);
  }
}
let watching = null;

function showFrame(view, frame, upwards) {
  const placed = placedFrame(current.image, planeShown(view), view.base, frame, upwards);
  const finest = frame.level === 0;
  view.show([
    { bitmap: view.base, opacity: 1 },
    { bitmap: placed, opacity: finest ? 0.8 : 1 },
  ]);
  const what = finest ? 'logits of the most likely class' : 'three hidden channels';
  say(
    `Level ${frame.level} (${frame.shape[2]} x ${frame.shape[1]} cells), step ${frame.step} of ${model.steps[frame.level]}: ${what}`,
  );
}

// ------------------------------------------------------------------ saving

function save(blob, name) {
  const link = Object.assign(document.createElement('a'), {
    href: URL.createObjectURL(blob),
    download: name,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

async function saveLabels() {
  const { image, labels, shape, name } = current;
  if (image.nifti) save(await niftiOf(labels, image.nifti), `${stemOf(name)}_labels.nii.gz`);
  else save(await pngOf(labels, shape[2], shape[1], 1), `${stemOf(name)}_labels.png`);
}

async function saveOverlay() {
  const plane = planeShown(current.views[0]);
  const pixels = current.painter.overlay(plane, current.labels, model.colours, +$('opacity').value);
  save(await pngOf(pixels, plane.width, plane.height, 3), `${stemOf(current.name)}_overlay.png`);
}

// ------------------------------------------------------------------ beginning

function connect() {
  const chosen = (files) => files.length && doing(() => segmentFiles([...files]));
  $('files').addEventListener('change', async () => {
    await chosen($('files').files);
    $('files').value = '';
  });
  const drop = $('drop');
  for (const name of ['dragover', 'dragleave', 'drop']) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle('over', name === 'dragover');
    });
  }
  document.addEventListener('drop', (event) => chosen(event.dataTransfer?.files ?? []));
  $('cancel').addEventListener('click', () => {
    watching?.();
    pool.cancel();
  });
  $('opacity').addEventListener('input', () => current?.views.forEach(blend));
  $('fit').addEventListener('click', () => {
    for (const view of current?.views ?? []) view.fit();
  });
  $('watch').addEventListener('click', () => doing(watch));
  $('save-labels').addEventListener('click', () => doing(saveLabels));
  $('save-overlay').addEventListener('click', () => doing(saveOverlay));
  $('save-table').addEventListener('click', () =>
    save(
      new Blob([csvOf(rowsOf(results, model.names))], { type: 'text/csv' }),
      'segmentations.csv',
    ),
  );
}

function describe() {
  $('kinds').textContent = volumes ? 'NIfTI (.nii, .nii.gz)' : 'PNG, JPEG, or TIFF of one page';
  $('files').accept = volumes ? '.nii,.gz' : '.png,.jpg,.jpeg,.tif,.tiff';
  if (model.folds.length > 1) {
    $('folds-label').hidden = false;
    $('folds-label').lastElementChild.textContent = `average ${model.folds.length} folds`;
  }
  if (model.mirrorAxes.length) {
    $('mirror-label').hidden = false;
    $('mirror-label').lastElementChild.textContent =
      `average ${2 ** model.mirrorAxes.length} mirrored copies`;
  }
  if (page.example) {
    $('example').hidden = false;
    $('example').addEventListener('click', () =>
      doing(() => {
        const bytes = Uint8Array.from(atob(page.example.data), (c) => c.charCodeAt(0));
        return segmentFiles([new File([bytes], page.example.name)]);
      }),
    );
  }
}

describe();
connect();
pool.helper(0).ready.then(
  ({ kind }) => {
    pool.kind = kind;
    say('Ready.');
    setBusy(false);
  },
  (error) => say(error.message, true),
);
