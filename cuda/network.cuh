// The sizes of one level's automaton, and its weights packed for the kernels.
#pragma once

#include "fire.hpp"
#include "precision.cuh"

namespace octreenca {

constexpr int kMostSamples = 16;  // a launch; their origins travel as arguments

__host__ __device__ constexpr int common_divisor(int a, int b) {
  return b == 0 ? a : common_divisor(b, a % b);
}

// One level of some samples, and what its fire draws depend on.
struct Level {
  int depth, height, width;  // cells; depth is 1 in 2-D
  u32 samples;               // of the launch
  u64 threshold;             // of 2^32
  u64 seed;
  u32 level;
  u32 first_sample;  // number of the launch's first sample in the batch
  u32 origin[kMostSamples][4];  // z, y, x of the first cell in the whole level

  __device__ __forceinline__ i64 cells() const {
    return static_cast<i64>(depth) * height * width;
  }
};

__device__ __forceinline__ u32 level_draw_key(const Level& level, u32 step, u32 sample) {
  return draw_key(level.seed, level.level, step, level.first_sample + sample);
}

template <int dimension, int channels, int inputs, int hidden, class P>
struct Network {
  using Precision = P;
  using State = typename P::State;
  static constexpr int kDimension = dimension;
  static constexpr int kChannels = channels;  // C
  static constexpr int kInputs = inputs;      // n_in
  static constexpr int kHidden = hidden;      // H
  static constexpr int kTaps = dimension == 2 ? 9 : 27;
  static constexpr int kGroups = (channels + 15) / 16;
  static constexpr int kHiddenGroups = (hidden + 15) / 16;
  static constexpr int kPadded = 16 * kGroups;  // channels from one cell to the next
  static constexpr int kHiddenPadded = 16 * kHiddenGroups;
  static constexpr int kStateWords = kPadded * static_cast<int>(sizeof(State)) / 4;  // of a cell
  // Cells side by side that lie in different banks of shared memory: the 32 words of a pass over
  // what the words of a cell share with them.
  static constexpr int kBanks = 32 / common_divisor(32, kStateWords);

  // Where the parts of the packed weights begin, in words of 4 bytes.
  static constexpr int kBias = 0;
  static constexpr int kPerceive = 2 * kHiddenPadded;
  static constexpr int kHiddenBlocks = kPerceive + kTaps * kStateWords;
  static constexpr int kUpdateBlocks = kHiddenBlocks + 2 * kGroups * kHiddenGroups * P::kBlockWords;
  static constexpr int kBiasBlocks = kUpdateBlocks + kHiddenGroups * kGroups * P::kBlockWords;
  static constexpr int kForwardWords = kBiasBlocks + (sizeof(State) == 2 ? 4 * kHiddenPadded : 0);
  static constexpr int kUpdateTransposed = kForwardWords;
  static constexpr int kHiddenTransposed =
      kUpdateTransposed + kGroups * kHiddenGroups * P::kBlockWords;
  static constexpr int kWords =
      kHiddenTransposed + kHiddenGroups * 2 * kGroups * P::kBlockWords;
};

// One level's weights as PyTorch keeps them, float32.
struct RawWeights {
  const float* perceive;       // (C, taps)
  const float* perceive_bias;  // (C)
  const float* hidden;         // (H, 2 C)
  const float* hidden_bias;    // (H)
  const float* update;         // (C - n_in, H)
};

struct PackArguments {
  RawWeights raw;
  u32* words;
  i64 count;  // kForwardWords, or kWords for the backward pass
};

// Reads the weights with their padding, by the columns that the kernels count.
template <class N>
struct WeightReader {
  const RawWeights& raw;

  // Of channel `input`, counted as [state, padded | perceived, padded], for hidden unit `unit`.
  __device__ float hidden(int unit, int input) const {
    const int channel = input % N::kPadded;
    if (unit >= N::kHidden || channel >= N::kChannels) return 0.0f;
    const int column = input < N::kPadded ? channel : N::kChannels + channel;
    return raw.hidden[unit * 2 * N::kChannels + column];
  }
  // Of hidden unit `unit` for channel `channel`: zero for the image's.
  __device__ float update(int channel, int unit) const {
    if (unit >= N::kHidden || channel < N::kInputs || channel >= N::kChannels) return 0.0f;
    return raw.update[(channel - N::kInputs) * N::kHidden + unit];
  }
  // The bias of perceive passes through the first layer: it is folded into that layer's.
  __device__ float bias(int unit) const {
    if (unit >= N::kHidden) return 0.0f;
    float sum = raw.hidden_bias[unit];
    for (int c = 0; c < N::kChannels; ++c) {
      sum += hidden(unit, N::kPadded + c) * raw.perceive_bias[c];
    }
    return sum;
  }
  __device__ float perceive(int tap, int channel) const {
    return channel < N::kChannels ? raw.perceive[channel * N::kTaps + tap] : 0.0f;
  }
};

// A thread a word.
template <class N>
__device__ void pack(const PackArguments& arguments) {
  using P = typename N::Precision;
  const WeightReader<N> read{arguments.raw};
  const i64 step = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; i < arguments.count;
       i += step) {
    const int at = static_cast<int>(i);
    u32 word;
    if (at < N::kPerceive) {
      // As the sums begin: every lane's two columns of a block, once for either row.
      const int unit = at / 32, block = at / 16 % 2, t = at / 4 % 4;
      word = float_as_word(read.bias(16 * unit + 4 * t + 2 * block + at % 2));
    } else if (at < N::kHiddenBlocks) {
      const int index = at - N::kPerceive, tap = index / N::kStateWords;
      const int place = index % N::kStateWords;
      if constexpr (sizeof(typename N::State) == 2) {
        word = halves(read.perceive(tap, 2 * place), read.perceive(tap, 2 * place + 1));
      } else {
        word = float_as_word(read.perceive(tap, place));
      }
    } else if (sizeof(typename N::State) == 2 && at >= N::kBiasBlocks && at < N::kForwardWords) {
      // A word a lane for 8 columns: the bias is in those that hold the first two rows.
      const int lane = (at - N::kBiasBlocks) % 32, block = (at - N::kBiasBlocks) / 32;
      const int unit = 16 * (block / 2) + column_of(block % 2, lane / 4);
      if constexpr (sizeof(typename N::State) == 2) {
        word = lane % 4 == 0 ? P::packed_bias(read.bias(unit)) : 0u;
      }
    } else {
      // Blocks of 16 x 16, one after the other: rows are what is multiplied, columns what results.
      const bool hidden = at < N::kUpdateBlocks, update = !hidden && at < N::kForwardWords;
      const bool update_transposed = !hidden && !update && at < N::kHiddenTransposed;
      const int begin = hidden              ? N::kHiddenBlocks
                        : update            ? N::kUpdateBlocks
                        : update_transposed ? N::kUpdateTransposed
                                            : N::kHiddenTransposed;
      const int columns = hidden || update_transposed ? N::kHiddenGroups
                          : update                    ? N::kGroups
                                                      : 2 * N::kGroups;
      const int block = (at - begin) / P::kBlockWords;
      const int row = block / columns * 16, column = block % columns * 16;
      word = P::packed((at - begin) % P::kBlockWords, [&](int k, int n) {
        return hidden              ? read.hidden(column + n, row + k)
               : update            ? read.update(column + n, row + k)
               : update_transposed ? read.update(row + k, column + n)
                                   : read.hidden(row + k, column + n);
      });
    }
    arguments.words[i] = word;
  }
}

}  // namespace octreenca
