// One plane of an image on a canvas: zoomed with the wheel, two fingers or + and -, moved by
// dragging or with the arrow keys.

const LARGEST_SHOWN = 8e6; // pixels of a canvas that every browser can hold
const STEP = 1.25,
  NUDGE = 0.1,
  MOST = 64;

/** A canvas of rgba [height][width][4], made smaller where it is larger than a browser can show. */
export function bitmapOf(width, height, colourAt) {
  const shrink = Math.max(1, Math.ceil(Math.sqrt((width * height) / LARGEST_SHOWN)));
  const canvas = document.createElement('canvas');
  canvas.width = Math.ceil(width / shrink);
  canvas.height = Math.ceil(height / shrink);
  const pixels = new ImageData(canvas.width, canvas.height);
  for (let y = 0, to = 0; y < canvas.height; ++y) {
    for (let x = 0; x < canvas.width; ++x, to += 4)
      colourAt(y * shrink * width + x * shrink, pixels.data, to);
  }
  canvas.getContext('2d').putImageData(pixels, 0, 0);
  return canvas;
}

export class PlaneView {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {number} width in mm or pixels of what is shown
   * @param {number} height likewise
   */
  constructor(canvas, width, height) {
    Object.assign(this, { canvas, width, height, layers: [], pointers: new Map() });
    this.fit();
    canvas.addEventListener(
      'wheel',
      (event) => {
        event.preventDefault();
        this.zoom(event.deltaY < 0 ? STEP : 1 / STEP, ...this.place(event));
      },
      { passive: false },
    );
    canvas.addEventListener('pointerdown', (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, this.place(event));
    });
    canvas.addEventListener('pointermove', (event) => this.drag(event));
    for (const name of ['pointerup', 'pointercancel']) {
      canvas.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    }
    canvas.addEventListener('keydown', (event) => this.key(event));
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(canvas);
  }

  /** @param {{bitmap: HTMLCanvasElement, opacity: number}[]} layers the lowest first */
  show(layers) {
    this.layers = layers;
    this.draw();
  }

  fit() {
    Object.assign(this, { scale: 1, x: 0, y: 0 });
    this.draw();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
  }

  zoom(factor, x = 0, y = 0) {
    const scale = Math.min(Math.max(this.scale * factor, 1), MOST),
      by = scale / this.scale;
    this.x = x - (x - this.x) * by;
    this.y = y - (y - this.y) * by;
    this.scale = scale;
    this.draw();
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = this.place(event);
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const apart = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]);
      this.zoom(apart(now) / Math.max(apart(before), 1), ...other);
    } else {
      this.x += now[0] - before[0];
      this.y += now[1] - before[1];
      this.draw();
    }
    this.pointers.set(event.pointerId, now);
  }

  key(event) {
    const { clientWidth: w, clientHeight: h } = this.canvas;
    const moves = {
      ArrowLeft: [NUDGE * w, 0],
      ArrowRight: [-NUDGE * w, 0],
      ArrowUp: [0, NUDGE * h],
      ArrowDown: [0, -NUDGE * h],
    };
    if (event.key === '+' || event.key === '=') this.zoom(STEP);
    else if (event.key === '-') this.zoom(1 / STEP);
    else if (event.key === '0') this.fit();
    else if (moves[event.key]) {
      this.x += moves[event.key][0];
      this.y += moves[event.key][1];
      this.draw();
    } else return;
    event.preventDefault();
  }

  draw() {
    const { canvas } = this,
      sharp = window.devicePixelRatio || 1;
    // One finger scrolls the page until there is something to move.
    canvas.style.touchAction = this.scale > 1 ? 'none' : 'pan-y';
    const width = Math.round(canvas.clientWidth * sharp),
      height = Math.round(canvas.clientHeight * sharp);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height)
      Object.assign(canvas, { width, height });
    const fitted = Math.min(width / this.width, height / this.height) * this.scale;
    const shown = [fitted * this.width, fitted * this.height];
    const far = shown.map((size, i) => Math.max(0, (size - [width, height][i]) / 2) / sharp);
    this.x = Math.min(Math.max(this.x, -far[0]), far[0]);
    this.y = Math.min(Math.max(this.y, -far[1]), far[1]);
    const context = canvas.getContext('2d');
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = fitted < 1;
    const left = (width - shown[0]) / 2 + this.x * sharp,
      top = (height - shown[1]) / 2 + this.y * sharp;
    for (const { bitmap, opacity } of this.layers) {
      context.globalAlpha = opacity;
      context.drawImage(bitmap, left, top, ...shown);
    }
    context.globalAlpha = 1;
  }
}
