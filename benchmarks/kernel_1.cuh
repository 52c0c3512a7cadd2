// Rung 1 of the ladder: the obvious kernel, and the baseline of every figure.
//
// A thread has a cell and does one step of it, in float32, as the paper describes its Listing 1:
// it perceives its neighbourhood, runs the two layers with weights from memory, and writes its new
// state. Written from that description.
#pragma once

#include "tile.cuh"

namespace octreenca {

struct Kernel1Arguments {
  Level level;
  const float* state;  // [samples][cells][padded channels]
  float* out;
  RawWeights weights;
  u32 step;
  u32 unused;
};

template <class N>
__device__ void kernel_1(const Kernel1Arguments& arguments) {
  constexpr int C = N::kChannels, H = N::kHidden, P = N::kPadded;
  const Level& level = arguments.level;
  const RawWeights& weights = arguments.weights;
  const i64 cells = level.cells();
  const i64 number = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (number >= cells * level.samples) return;
  const auto sample = static_cast<u32>(number / cells);
  const int x = static_cast<int>(number % level.width);
  const int y = static_cast<int>(number / level.width % level.height);
  const int z = static_cast<int>(number / level.width / level.height % level.depth);

  const float* state = arguments.state + number * P;
  float* out = arguments.out + number * P;
  float inputs[2 * C], update[C];
  for (int c = 0; c < C; ++c) {
    inputs[c] = state[c];
    inputs[C + c] = weights.perceive_bias[c];
    update[c] = 0.0f;
  }
  for (int tap = 0; tap < N::kTaps; ++tap) {
    const int dx = tap % 3, dy = tap / 3 % 3, dz = N::kDimension == 3 ? tap / 9 : 1;
    const i64 sx = dx == 0 ? before(x, level.width) : dx == 2 ? behind(x, level.width) : 0;
    const i64 sy = dy == 0 ? before(y, level.height) : dy == 2 ? behind(y, level.height) : 0;
    const i64 sz = dz == 0 ? before(z, level.depth) : dz == 2 ? behind(z, level.depth) : 0;
    const float* neighbour = state + ((sz * level.height + sy) * level.width + sx) * P;
    for (int c = 0; c < C; ++c) {
      inputs[C + c] += neighbour[c] * weights.perceive[c * N::kTaps + tap];
    }
  }
  for (int h = 0; h < H; ++h) {
    float hidden = weights.hidden_bias[h];
    for (int i = 0; i < 2 * C; ++i) hidden += inputs[i] * weights.hidden[h * 2 * C + i];
    hidden = relu(hidden);
    for (int c = N::kInputs; c < C; ++c) {
      update[c] += hidden * weights.update[(c - N::kInputs) * H + h];
    }
  }
  const u32* origin = level.origin[sample];
  u8 fired;
  fire_row(&fired, 1, level_draw_key(level, arguments.step, sample),
           origin[0] + static_cast<u32>(z), origin[1] + static_cast<u32>(y),
           origin[2] + static_cast<u32>(x), level.threshold);
  for (int c = 0; c < P; ++c) {
    out[c] = c < C ? inputs[c] + (fired ? update[c] : 0.0f) : 0.0f;
  }
}

}  // namespace octreenca
