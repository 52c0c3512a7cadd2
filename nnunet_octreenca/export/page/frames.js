// Pictures of the automaton at work: hidden channels on coarse levels, logits on the finest.

const HIDDEN_SHOWN = 3; // as red, green and blue
const STEEPNESS = 1;

const sigmoid = (value) => 1 / (1 + Math.exp(-STEEPNESS * value));

/**
 * One plane of the level as it is.
 *
 * @param {number} share which plane of a volume, 0 to 1
 * @returns level, step, shape and rgba [height][width][4]; on the finest level transparent where
 *   no class is likely
 */
export function frameOf(model, network, frame, share) {
  const [depth, height, width] = frame.shape,
    plane = height * width;
  const z = Math.min(depth - 1, Math.floor(share * depth));
  const channel = (index) => frame.channel(index).subarray(z * plane, (z + 1) * plane);
  const rgba = new Uint8ClampedArray(4 * plane);
  if (frame.level === 0) paintLogits(model, network, channel, rgba);
  else paintHidden(network, network.channels[frame.level], channel, rgba);
  return { level: frame.level, step: frame.step, shape: frame.shape, rgba };
}

function paintHidden(network, channels, channel, rgba) {
  const first = network.inputs + network.logits;
  const count = Math.min(HIDDEN_SHOWN, channels - first);
  for (let c = 0; c < HIDDEN_SHOWN; ++c) {
    const values = channel(first + Math.min(c, count - 1));
    for (let i = 0; i < values.length; ++i) rgba[4 * i + c] = 255 * sigmoid(values[i]);
  }
  for (let i = 3; i < rgba.length; i += 4) rgba[i] = 255;
}

function paintLogits(model, network, channel, rgba) {
  const logits = Array.from({ length: network.logits }, (_, k) => channel(network.inputs + k));
  for (let i = 0; 4 * i < rgba.length; ++i) {
    let best = 0;
    for (let k = 1; k < logits.length; ++k) if (logits[k][i] > logits[best][i]) best = k;
    const label = model.regions ? model.regions[best] : best + network.background;
    const colour = model.colours[label];
    for (let c = 0; c < 3; ++c) rgba[4 * i + c] = colour[c];
    rgba[4 * i + 3] = label ? 255 * sigmoid(logits[best][i]) : 0;
  }
}
