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

// A piece of a row of cells, by its number in all samples: its sample and its coordinates.
struct RowPiece {
  u32 sample, z, y, x;
};
constexpr u32 kPieceCells = 128;

// Index: of numbers of pieces. 32 bits where all of them fit: a division of 64 bits takes some
// seventy instructions.
template <class Index>
__device__ __forceinline__ RowPiece row_piece(const EnterArguments& arguments, Index number) {
  const auto width = static_cast<Index>(arguments.width);
  const auto height = static_cast<Index>(arguments.height);
  const auto depth = static_cast<Index>(arguments.depth);
  const Index pieces = (width + kPieceCells - 1) / kPieceCells;
  const Index row = number / pieces, plane = row / height, sample = plane / depth;
  return {static_cast<u32>(sample), static_cast<u32>(plane - sample * depth),
          static_cast<u32>(row - plane * height),
          static_cast<u32>(number - row * pieces) * kPieceCells};
}

// The states of a piece of a row: the image beside the parents' other channels (zeros on the coarsest
// level). A lane has 16 bytes of a cell, so that a warp writes 512 side by side.
template <class N>
__device__ __forceinline__ void enter_piece(const EnterArguments& arguments, RowPiece piece) {
  using P = typename N::Precision;
  constexpr u32 kVectors = N::kStateWords / 4;
  constexpr int kNumbers = N::kPadded / static_cast<int>(kVectors);  // channels of 16 bytes
  const i64 cells = arguments.depth * arguments.height * arguments.width;
  const i64 cell = (piece.z * arguments.height + piece.y) * arguments.width + piece.x;
  const i64 parents =
      ((piece.sample * arguments.parent_depth + piece.z / static_cast<u32>(arguments.factor[0])) *
           arguments.parent_height + piece.y / static_cast<u32>(arguments.factor[1])) *
      arguments.parent_width;
  const auto* parent = arguments.parent == nullptr
                           ? nullptr
                           : static_cast<const uint4*>(arguments.parent) + parents * kVectors;
  const float* image = arguments.image + piece.sample * N::kInputs * cells + cell;
  auto* to = static_cast<uint4*>(arguments.state) + (piece.sample * cells + cell) * kVectors;
  const u32 left = static_cast<u32>(arguments.width) - piece.x;
  const u32 end = (left < kPieceCells ? left : kPieceCells) * kVectors;
#pragma unroll 2
  for (u32 i = threadIdx.x % 32; i < end; i += 32) {
    const u32 x = i / kVectors, part = i % kVectors;
    uint4 state = {0u, 0u, 0u, 0u};
    if (parent != nullptr) {
      const u32 above = (piece.x + x) / static_cast<u32>(arguments.factor[2]);
      state = parent[static_cast<i64>(above) * kVectors + part];
    }
    u32 words[4] = {state.x, state.y, state.z, state.w};
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) {
      const int channel = static_cast<int>(part) * kNumbers + k;
      if (k < N::kInputs && channel < N::kInputs) P::put(words, k, image[channel * cells + x]);
    }
    to[i] = {words[0], words[1], words[2], words[3]};
  }
}

// Every cell's state at the beginning of a level. A warp has a piece of a row.
template <class N>
__device__ void enter(const EnterArguments& arguments) {
  const i64 rows = arguments.samples * arguments.depth * arguments.height;
  const i64 pieces = (arguments.width + kPieceCells - 1) / kPieceCells * rows;
  const i64 warps = static_cast<i64>(gridDim.x) * (blockDim.x / 32);
  for (i64 number = static_cast<i64>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
       number < pieces; number += warps) {
    const bool small = pieces <= 0xFFFFFFFFll && arguments.width <= 0x7FFFFFFFll;
    enter_piece<N>(arguments, small ? row_piece(arguments, static_cast<u32>(number))
                                    : row_piece(arguments, static_cast<u64>(number)));
  }
}

struct MapArguments {
  i64 cells;     // of the coarser level, in all samples
  i64 channels;  // from one cell of the parents to the next
  const void* parent;
  const float* weights;  // [channels][kPadded]; the image's channels have none
  void* state;           // [cells][kPadded]
};

// The parents' channels beside the image as a level of another width has them, once a parent and not
// once a child. A thread has four channels of a cell. Sums are float32 in every precision: a level's
// steps do some hundred times as much.
template <class N>
__device__ void map_parents(const MapArguments& arguments) {
  using P = typename N::Precision;
  using State = typename N::State;
  constexpr int kQuads = N::kPadded / 4;
  const i64 total = arguments.cells * kQuads, stride = static_cast<i64>(gridDim.x) * blockDim.x;
  const int channels = static_cast<int>(arguments.channels);
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += stride) {
    const i64 cell = i / kQuads;
    const int column = static_cast<int>(i % kQuads) * 4;
    const auto* parent = static_cast<const State*>(arguments.parent) + cell * channels;
    float sum[4] = {};
    for (int c = N::kInputs / 4 * 4; c < channels; c += 4) {
      float numbers[4];
      P::numbers(P::load(parent + c), numbers);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (c + k < N::kInputs) continue;  // infinity times 0 would be NaN
        const auto* weights = arguments.weights + static_cast<i64>(c + k) * N::kPadded + column;
        const float4 row = *reinterpret_cast<const float4*>(weights);
        sum[0] += numbers[k] * row.x;
        sum[1] += numbers[k] * row.y;
        sum[2] += numbers[k] * row.z;
        sum[3] += numbers[k] * row.w;
      }
    }
    P::store(static_cast<State*>(arguments.state) + cell * N::kPadded + column, P::cell(sum));
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
