// How states were entered at first: a thread has a cell, and writes it 8 bytes at a time.
//
// Seven divisions of 64 bits a cell, and stores that lie 32 bytes apart in a warp.
#pragma once

#include "octree.cuh"

namespace octreenca {

// Every cell's state: its image beside its parent's other channels (zeros on the coarsest level).
// A thread has a cell.
template <class N>
__device__ void enter_1(const EnterArguments& arguments) {
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

}  // namespace octreenca
