// The weights' gradients: sums over cells. Each block keeps its own, in registers over all of its
// tiles, and `reduce` adds up the blocks' in their order. No atomics: the same bits in every run.
#pragma once

#include "network.cuh"

namespace octreenca {

// What a block sums up, in numbers.
template <class N, int kWarps>
struct Sums {
  static constexpr int kHidden = 0;  // [2 C, padded][H, padded]
  static constexpr int kUpdate = 2 * N::kPadded * N::kHiddenPadded;  // [C, padded][H, padded]
  static constexpr int kBias = 3 * N::kPadded * N::kHiddenPadded;    // [H, padded]
  static constexpr int kPerceive = kBias + N::kHiddenPadded;  // [warps][taps][C, padded]
  static constexpr int kCount = kPerceive + kWarps * N::kTaps * N::kPadded;
};

// 16 cells of every warp, laid out for the sums over cells. Rows are 4 numbers longer than they
// need be, so that what eight lanes write lies in different banks.
template <class N>
struct Stage {
  static constexpr int kInputsStride = 2 * N::kPadded + 4;
  static constexpr int kHiddenStride = N::kHiddenPadded + 4;
  static constexpr int kStride = N::kPadded + 4;
  static constexpr int kNumbers = 16 * (kInputsStride + 2 * kHiddenStride + 2 * kStride);

  float* numbers;
  __device__ float* inputs(int row) const { return numbers + row * kInputsStride; }
  __device__ float* hidden(int row) const {
    return numbers + 16 * kInputsStride + row * kHiddenStride;
  }
  __device__ float* grad_hidden(int row) const { return hidden(16) + row * kHiddenStride; }
  __device__ float* grad_update(int row) const { return hidden(32) + row * kStride; }
  __device__ float* grad_perceived(int row) const { return grad_update(16) + row * kStride; }
};

// A thread's part of the weights' gradients: columns of four hidden units, with four rows of the
// hidden layer's inputs and two of the update's channels.
template <class N, int kThreads>
struct WeightSums {
  static constexpr int kUnitQuads = N::kHiddenPadded / 4;
  static constexpr int kParts = N::kPadded / 2 * kUnitQuads;
  static constexpr int kOwned = (kParts + kThreads - 1) / kThreads;
  static constexpr bool kInRegisters = kOwned <= 2;  // else in the block's sums

  float inputs[kInRegisters ? kOwned : 1][4][4] = {};
  float update[kInRegisters ? kOwned : 1][2][4] = {};

  __device__ __forceinline__ void add_rows(const Stage<N>& stage, int rows, int part,
                                           float (*of_inputs)[4], float (*of_update)[4]) const {
    const int unit = part % kUnitQuads * 4, pair = part / kUnitQuads;
    for (int row = 0; row < rows; ++row) {
      const float4 x = *reinterpret_cast<const float4*>(stage.inputs(row) + 4 * pair);
      const float4 gh = *reinterpret_cast<const float4*>(stage.grad_hidden(row) + unit);
      const float2 gu = *reinterpret_cast<const float2*>(stage.grad_update(row) + 2 * pair);
      const float4 h = *reinterpret_cast<const float4*>(stage.hidden(row) + unit);
      const float xs[4] = {x.x, x.y, x.z, x.w}, ghs[4] = {gh.x, gh.y, gh.z, gh.w};
      const float gus[2] = {gu.x, gu.y}, hs[4] = {h.x, h.y, h.z, h.w};
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int r = 0; r < 4; ++r) of_inputs[r][n] += xs[r] * ghs[n];
#pragma unroll
        for (int r = 0; r < 2; ++r) of_update[r][n] += gus[r] * hs[n];
      }
    }
  }
  __device__ __forceinline__ void save(int part, const float (*of_inputs)[4],
                                       const float (*of_update)[4], float* sums) const {
    const int unit = part % kUnitQuads * 4, pair = part / kUnitQuads;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        sums[(4 * pair + r) * N::kHiddenPadded + unit + n] += of_inputs[r][n];
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        sums[(2 * N::kPadded + 2 * pair + r) * N::kHiddenPadded + unit + n] += of_update[r][n];
      }
    }
  }

  // Adds `rows` cells of a stage; `sums` are the block's.
  __device__ __forceinline__ void add(const Stage<N>& stage, int rows, float* sums) {
    if constexpr (kInRegisters) {
#pragma unroll
      for (int owned = 0; owned < kOwned; ++owned) {
        const int part = owned * kThreads + static_cast<int>(threadIdx.x);
        if (part < kParts) add_rows(stage, rows, part, inputs[owned], update[owned]);
      }
    } else {
      for (int part = threadIdx.x; part < kParts; part += kThreads) {
        float of_inputs[4][4] = {}, of_update[2][4] = {};
        add_rows(stage, rows, part, of_inputs, of_update);
        save(part, of_inputs, of_update, sums);
      }
    }
  }
  __device__ __forceinline__ void finish(float* sums) const {
    if constexpr (kInRegisters) {
#pragma unroll
      for (int owned = 0; owned < kOwned; ++owned) {
        const int part = owned * kThreads + static_cast<int>(threadIdx.x);
        if (part < kParts) save(part, inputs[owned], update[owned], sums);
      }
    }
  }
};

struct ReduceArguments {
  const float* sums;  // [blocks][kCount]
  i64 blocks;
  RawWeights raw;
  float *perceive, *perceive_bias, *hidden, *hidden_bias, *update;  // PyTorch's layout; written
};

// A thread a number.
template <class N, int kWarps>
__device__ void reduce(const ReduceArguments& arguments) {
  using S = Sums<N, kWarps>;
  constexpr int C = N::kChannels, H = N::kHidden;
  constexpr int kPerceive = C * N::kTaps, kHidden = H * 2 * C, kUpdate = (C - N::kInputs) * H;
  const auto total = [&](int at) {
    float sum = 0.0f;
    for (i64 block = 0; block < arguments.blocks; ++block) {
      sum += arguments.sums[block * S::kCount + at];
    }
    return sum;
  };
  const i64 stride = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 number = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
       number < kPerceive + C + kHidden + H + kUpdate; number += stride) {
    int i = static_cast<int>(number);
    if (i < kPerceive) {
      float sum = 0.0f;
      for (int warp = 0; warp < kWarps; ++warp) {
        sum += total(S::kPerceive + (warp * N::kTaps + i % N::kTaps) * N::kPadded + i / N::kTaps);
      }
      arguments.perceive[i] = sum;
      continue;
    }
    i -= kPerceive;
    if (i < C) {  // through the hidden layer's bias, into which it was folded
      float sum = 0.0f;
      for (int unit = 0; unit < H; ++unit) {
        sum += total(S::kBias + unit) * arguments.raw.hidden[unit * 2 * C + C + i];
      }
      arguments.perceive_bias[i] = sum;
      continue;
    }
    i -= C;
    if (i < kHidden) {
      const int unit = i / (2 * C), input = i % (2 * C);
      const bool perceived = input >= C;
      const int row = perceived ? N::kPadded + input - C : input;
      float sum = total(S::kHidden + row * N::kHiddenPadded + unit);
      if (perceived) sum += arguments.raw.perceive_bias[input - C] * total(S::kBias + unit);
      arguments.hidden[i] = sum;
      continue;
    }
    i -= kHidden;
    if (i < H) {
      arguments.hidden_bias[i] = total(S::kBias + i);
      continue;
    }
    i -= H;
    arguments.update[i] =
        total(S::kUpdate + (N::kInputs + i / H) * N::kHiddenPadded + i % H);
  }
}

}  // namespace octreenca
