// Into a level and out of the last one.
#pragma once

#include "network.cuh"

namespace octreenca {

struct EnterArguments {
  i64 depth, height, width;                          // of the level
  i64 parent_depth, parent_height, parent_width;
  i64 samples;
  int factor[4];       // z, y, x
  const float* image;  // of the level, [samples][n_in][cells]
  const void* parent;  // the state above, or null on the coarsest level
  void* state;
};

// Every cell's state: its image beside its parent's other channels (zeros on the coarsest level).
// A thread has a cell.
template <class N>
__device__ void enter(const EnterArguments& arguments) {
  using P = typename N::Precision;
  using State = typename N::State;
  const i64 cells = arguments.depth * arguments.height * arguments.width;
  const i64 stride = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < arguments.samples * cells; i += stride) {
    const i64 sample = i / cells, cell = i % cells;
    const i64 x = cell % arguments.width, y = cell / arguments.width % arguments.height;
    const i64 z = cell / (arguments.width * arguments.height);
    const i64 above =
        ((sample * arguments.parent_depth + z / arguments.factor[0]) * arguments.parent_height +
         y / arguments.factor[1]) * arguments.parent_width + x / arguments.factor[2];
    const State* parent = static_cast<const State*>(arguments.parent);
    const float* image = arguments.image + sample * N::kInputs * cells + cell;
    State* to = static_cast<State*>(arguments.state) + i * N::kPadded;
#pragma unroll
    for (int c = 0; c < N::kPadded; c += 4) {
      float numbers[4] = {};
      if (parent != nullptr) P::numbers(P::load(parent + above * N::kPadded + c), numbers);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (c + k < N::kInputs) numbers[k] = image[(c + k) * cells];
      }
      P::store(to + c, P::cell(numbers));
    }
  }
}

struct LeaveArguments {
  i64 cells, samples;
  const void* state;
  float* values;  // [samples][background + logits][cells]
  int logits, background;
};

// Logits, channels first; a background's is the constant 0. A thread has a cell.
template <class N>
__device__ void leave(const LeaveArguments& arguments) {
  using P = typename N::Precision;
  const i64 cells = arguments.cells, stride = static_cast<i64>(gridDim.x) * blockDim.x;
  const int heads = arguments.logits + arguments.background;
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < arguments.samples * cells; i += stride) {
    const auto* state = static_cast<const typename N::State*>(arguments.state) + i * N::kPadded;
    float* to = arguments.values + i / cells * heads * cells + i % cells;
    if (arguments.background) to[0] = 0.0f;
    for (int c = N::kInputs / 4 * 4; c < N::kInputs + arguments.logits; c += 4) {
      float numbers[4];
      P::numbers(P::load(state + c), numbers);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int k = c + j - N::kInputs;
        if (k >= 0 && k < arguments.logits) to[(k + arguments.background) * cells] = numbers[j];
      }
    }
  }
}

struct DrawArguments {
  Level level;
  u8* fired;  // [samples][cells]
  u32 step;
  u32 unused;
};

// The fire draws themselves, for the tests.
template <class N>
__device__ void draw(const DrawArguments& arguments) {
  const Level& level = arguments.level;
  const i64 planes = static_cast<i64>(level.samples) * level.depth, rows = planes * level.height;
  const i64 stride = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 row = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; row < rows;
       row += stride) {
    const auto sample = static_cast<u32>(row / level.height / level.depth);
    const u32* origin = level.origin[sample];
    fire_row(arguments.fired + row * level.width, level.width,
             level_draw_key(level, arguments.step, sample),
             origin[0] + static_cast<u32>(row / level.height % level.depth),
             origin[1] + static_cast<u32>(row % level.height), origin[2], level.threshold);
  }
}

}  // namespace octreenca
