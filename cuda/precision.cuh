// Products of 16 cells with 16 x 16 weights, in three precisions.
//
// Every matrix is cut into groups of 16 channels (or hidden units). Of a group a lane (g, t) holds
// the channels 4 t to 4 t + 3 of the cells g and g + 8: 8 or 16 bytes of the state, side by side.
// The tensor cores want other columns there, but the order of a sum's terms is ours to choose: the
// weights are packed so that what lies in a lane is what it needs. So the sums of one layer are the
// operands of the next as they stand, and nothing is exchanged in between.
#pragma once

#include "primitives.cuh"

namespace octreenca {

// Four columns of two rows, those of cells g and g + 8, as the tensor cores' sums lie: two blocks of
// 8 columns, of which a lane has two neighbours in either row.
struct Rows {
  float block[2][4];
  __device__ __forceinline__ float& low(int column) { return block[column / 2][column % 2]; }
  __device__ __forceinline__ float& high(int column) { return block[column / 2][2 + column % 2]; }
  __device__ __forceinline__ float low(int column) const { return block[column / 2][column % 2]; }
  __device__ __forceinline__ float high(int column) const {
    return block[column / 2][2 + column % 2];
  }
};

__device__ __forceinline__ Rows relu(Rows rows) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    rows.block[0][i] = relu(rows.block[0][i]);
    rows.block[1][i] = relu(rows.block[1][i]);
  }
  return rows;
}

__device__ __forceinline__ float word_as_float(u32 word) {
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}
__device__ __forceinline__ u32 float_as_word(float value) {
  u32 word;
  memcpy(&word, &value, sizeof word);
  return word;
}

// Column of a group that the tensor cores' column g of their 8-wide block `j` stands for.
__device__ __forceinline__ int column_of(int j, int g) { return 4 * (g / 2) + 2 * j + g % 2; }

// The fast mode: states and factors in float16, sums in float32.
struct Float16 {
  using State = u16;
  static constexpr int kBlockWords = 128;  // of 16 x 16 weights

  struct Operand {
    u32 a[4];
  };
  struct Block {
    uint4 words;
  };

  // Four channels of a cell, as they lie in memory.
  using Cell = uint2;
  static __device__ __forceinline__ Cell load(const State* from) {
    return *reinterpret_cast<const uint2*>(from);
  }
  static __device__ __forceinline__ void store(State* to, Cell cell) {
    *reinterpret_cast<uint2*>(to) = cell;
  }
  static __device__ __forceinline__ void numbers(Cell cell, float* to) {
    to[0] = low_half(cell.x);
    to[1] = high_half(cell.x);
    to[2] = low_half(cell.y);
    to[3] = high_half(cell.y);
  }
  static __device__ __forceinline__ Cell cell(const float* from) {
    return {halves(from[0], from[1]), halves(from[2], from[3])};
  }
  // Number k of 16 bytes.
  static __device__ __forceinline__ void put(u32* words, int k, float value) {
    u32& word = words[k / 2];
    word = k % 2 ? (word & 0xFFFFu) | halves(0.0f, value) : (word & 0xFFFF0000u) | halves(value, 0.0f);
  }
  static __device__ __forceinline__ Cell zero() { return {0u, 0u}; }
  static __device__ __forceinline__ void fma(Cell& sum, Cell a, Cell b) {
    sum.x = halves_fma(a.x, b.x, sum.x);
    sum.y = halves_fma(a.y, b.y, sum.y);
  }
  static __device__ __forceinline__ Operand operand(Cell low, Cell high) {
    return {{low.x, high.x, low.y, high.y}};
  }
  static __device__ __forceinline__ Operand operand(const Rows& rows) {
    const auto& [first, second] = rows.block;
    return {{halves(first[0], first[1]), halves(first[2], first[3]),
             halves(second[0], second[1]), halves(second[2], second[3])}};
  }
  static __device__ __forceinline__ Operand activations(const Rows& rows) {
    const auto& [first, second] = rows.block;
    return {{halves_of_relu(first[0], first[1]), halves_of_relu(first[2], first[3]),
             halves_of_relu(second[0], second[1]), halves_of_relu(second[2], second[3])}};
  }

  static __device__ __forceinline__ Block block(const u32* words, u32 lane) {
    return {*reinterpret_cast<const uint4*>(words + 4 * lane)};
  }
  static __device__ __forceinline__ void multiply_add(Rows& sum, const Operand& x, const Block& w,
                                                      u32) {
    mma_f16(sum.block[0], x.a, w.words.x, w.words.y);
    mma_f16(sum.block[1], x.a, w.words.z, w.words.w);
  }
  // A bias as a product of its own, (1, 1) with the two halves of what float16 cannot hold in one: a
  // register for 8 columns, where loading what the sums begin with takes 8 passes of the cache.
  static __device__ __forceinline__ void add_bias(Rows& sum, const u32* words, u32 lane) {
    const u32 ones = lane % 4 == 0 ? 0x3C003C00u : 0u;
    const u32 factors[2] = {ones, ones};
    mma_f16_short(sum.block[0], factors, words[0]);
    mma_f16_short(sum.block[1], factors, words[1]);
  }
  static __device__ u32 packed_bias(float bias) {
    const u32 large = halves(bias, 0.0f);
    return large | halves(0.0f, bias - low_half(large));
  }
  // What a word of a block holds, of weight(row of the factor, column of the sum).
  template <class Weight>
  static __device__ u32 packed(int word, const Weight& weight) {
    const int lane = word / 4, j = word % 4 / 2, i = word % 2, g = lane / 4, t = lane % 4;
    const int k = 4 * t + 2 * i, n = column_of(j, g);
    return halves(weight(k, n), weight(k + 1, n));
  }
};

// States in float32; what Tf32 and Plain share.
struct SingleState {
  using State = float;
  using Cell = float4;
  static __device__ __forceinline__ Cell load(const State* from) {
    return *reinterpret_cast<const float4*>(from);
  }
  static __device__ __forceinline__ void store(State* to, Cell cell) {
    *reinterpret_cast<float4*>(to) = cell;
  }
  static __device__ __forceinline__ void numbers(Cell cell, float* to) {
    to[0] = cell.x;
    to[1] = cell.y;
    to[2] = cell.z;
    to[3] = cell.w;
  }
  static __device__ __forceinline__ Cell cell(const float* from) {
    return {from[0], from[1], from[2], from[3]};
  }
  static __device__ __forceinline__ void put(u32* words, int k, float value) {
    words[k] = float_as_word(value);
  }
  static __device__ __forceinline__ Cell zero() { return {0.0f, 0.0f, 0.0f, 0.0f}; }
  static __device__ __forceinline__ void fma(Cell& sum, Cell a, Cell b) {
    sum.x += a.x * b.x;
    sum.y += a.y * b.y;
    sum.z += a.z * b.z;
    sum.w += a.w * b.w;
  }
};

// float32 on every GPU: multiply and add, the factors handed round the four lanes of a row.
struct Plain : SingleState {
  static constexpr int kBlockWords = 256;
  using Operand = Rows;
  struct Block {
    const u32* words;
  };
  static __device__ __forceinline__ Operand operand(Cell low, Cell high) {
    return {{{low.x, low.y, high.x, high.y}, {low.z, low.w, high.z, high.w}}};
  }
  static __device__ __forceinline__ Operand operand(const Rows& rows) { return rows; }
  static __device__ __forceinline__ Operand activations(const Rows& rows) { return relu(rows); }
  static __device__ __forceinline__ Block block(const u32* words, u32) { return {words}; }
  static __device__ __forceinline__ void multiply_add(Rows& sum, const Operand& x, const Block& w,
                                                      u32 lane) {
    const float* columns = reinterpret_cast<const float*>(w.words) + 4 * (lane % 4);
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      const u32 holder = lane / 4 * 4 + k / 4;
      const float low = from_lane(x.low(k % 4), holder), high = from_lane(x.high(k % 4), holder);
      const float4 row = *reinterpret_cast<const float4*>(columns + 16 * k);
      const float weights[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        sum.low(n) += low * weights[n];
        sum.high(n) += high * weights[n];
      }
    }
  }
  template <class Weight>
  static __device__ u32 packed(int word, const Weight& weight) {
    return float_as_word(weight(word / 16, word % 16));
  }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
// float32 on tensor cores: every factor is the sum of two numbers of 11 bits, and of their four
// products the smallest is left out. About 2^-21 of a product is lost.
//
//   kMask   the larger number is cut off, not rounded, and the smaller is given whole: the tensor
//           cores look at 10 bits of fraction. Two instructions a factor; rounding takes seven, for
//           the machine has no such conversion. 2^-20 of a product is lost.
template <bool kMask>
struct SplitTf32 : SingleState {
  static constexpr int kBlockWords = 512;
  struct Operand {
    u32 large[2][4], small[2][4];
  };
  struct Block {
    const u32* words;
  };
  static __device__ __forceinline__ void split(float value, u32& large, u32& small) {
    if constexpr (kMask) {
      // NaN stays NaN, and infinity becomes it: infinite less infinite.
      large = float_as_word(value) & 0xFFFFE000u;
      small = float_as_word(value - word_as_float(large));
      return;
    }
    large = to_tf32(value);
    small = to_tf32(value - word_as_float(large));
  }
  static __device__ __forceinline__ Operand operand(const Rows& rows) {
    Operand result;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      split(rows.low(2 * i), result.large[i][0], result.small[i][0]);
      split(rows.high(2 * i), result.large[i][1], result.small[i][1]);
      split(rows.low(2 * i + 1), result.large[i][2], result.small[i][2]);
      split(rows.high(2 * i + 1), result.large[i][3], result.small[i][3]);
    }
    return result;
  }
  static __device__ __forceinline__ Operand operand(Cell low, Cell high) {
    return operand(Rows{{{low.x, low.y, high.x, high.y}, {low.z, low.w, high.z, high.w}}});
  }
  static __device__ __forceinline__ Operand activations(const Rows& rows) {
    return operand(relu(rows));
  }
  static __device__ __forceinline__ Block block(const u32* words, u32) { return {words}; }
  static __device__ __forceinline__ void multiply_add(Rows& sum, const Operand& x, const Block& w,
                                                      u32 lane) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // b0 and b1, then what rounding left of them
        const uint4 b = *reinterpret_cast<const uint4*>(w.words + ((j * 2 + i) * 32 + lane) * 4);
        mma_tf32(sum.block[j], x.small[i], b.x, b.y);
        mma_tf32(sum.block[j], x.large[i], b.z, b.w);
        mma_tf32(sum.block[j], x.large[i], b.x, b.y);
      }
    }
  }
  template <class Weight>
  static __device__ u32 packed(int word, const Weight& weight) {
    const int r = word % 4, lane = word / 4 % 32, i = word / 128 % 2, j = word / 256;
    u32 large, small;
    SplitTf32<false>::split(weight(4 * (lane % 4) + 2 * i + r % 2, column_of(j, lane / 4)), large, small);
    return r < 2 ? large : small;
  }
};
using RoundedTf32 = SplitTf32<false>;
using Tf32 = SplitTf32<true>;
#endif

}  // namespace octreenca
