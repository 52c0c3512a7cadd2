// The micro-kernels of the linear layers and of their weights' gradients.
// Internal linkage, and no template of the standard library: see kernels_impl.hpp.
#pragma once

#include "vector.hpp"

namespace octreenca {
namespace {

// Cells that a micro-kernel takes at once. 6 rows of 4 vectors fill 24 of 32 registers with sums,
// 6 rows of 2 vectors 12 of 16; a single column of vectors needs 12 rows to hide the latency of
// an addition.
constexpr int kRows = 6;
constexpr int kSingleRows = 12;
constexpr int kGroup = 12;
static_assert(kChunk % kGroup == 0, "chunks are made of groups");

// Micro-kernels take whole groups: cells that are not there are zeros.
template <class T>
int fill_group(int count, T* rows, int stride) {
  const int whole = (count + kGroup - 1) / kGroup * kGroup;
  for (int i = count * stride; i < whole * stride; ++i) rows[i] = 0;
  return whole;
}

enum class Epilogue { kStore, kRelu, kReluBf16, kMask };

// Factors are numbers, or words of two bfloat16 whose products are summed in float.
template <class X>
struct Factors {
  using Sum = X;
  OCTREENCA_INLINE void multiply_add(Vector<X>& sum, Vector<X> x, Vector<X> w) { sum += x * w; }
};
template <>
struct Factors<std::uint32_t> {
  using Sum = float;
  OCTREENCA_INLINE void multiply_add(Vector<float>& sum, Vector<std::uint32_t> x,
                                     Vector<std::uint32_t> w) {
    sum = dot_bf16(sum, x, w);
  }
};
template <class X>
using SumOf = typename Factors<X>::Sum;

// NaN stays NaN, so that a state that is lost is seen to be.
template <class V>
OCTREENCA_INLINE V relu(V value) {
  return value < V{} ? V{} : value;
}

// out[row] = sum over k of x[row][k] * w[k], from `bias` or zero: kM rows, kN vectors of columns.
// Y is the sums' type, but for kReluBf16, which writes bfloat16.
template <int kM, int kN, Epilogue kEpilogue, class X, class Y>
OCTREENCA_INLINE void block(const X* __restrict x, int x_stride, int depth, const X* __restrict w,
                            int w_stride, const SumOf<X>* __restrict bias, Y* __restrict out,
                            int out_stride) {
  using T = SumOf<X>;
  constexpr int L = kLanes<T>;
  Vector<T> sum[kM][kN];
#pragma GCC unroll 16
  for (int n = 0; n < kN; ++n) {
    const Vector<T> first = bias ? load(bias + n * L) : Vector<T>{};
#pragma GCC unroll 16
    for (int m = 0; m < kM; ++m) sum[m][n] = first;
  }
  for (int k = 0; k < depth; ++k) {
    Vector<X> column[kN];
#pragma GCC unroll 16
    for (int n = 0; n < kN; ++n) column[n] = load(w + k * w_stride + n * L);
#pragma GCC unroll 16
    for (int m = 0; m < kM; ++m) {
      const Vector<X> value = broadcast<X>(x[m * x_stride + k]);
#pragma GCC unroll 16
      for (int n = 0; n < kN; ++n) Factors<X>::multiply_add(sum[m][n], value, column[n]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kM; ++m)
#pragma GCC unroll 16
    for (int n = 0; n < kN; ++n) {
      Y* to = out + m * out_stride + n * L;
      if constexpr (kEpilogue == Epilogue::kRelu) {
        store(to, relu(sum[m][n]));
      } else if constexpr (kEpilogue == Epilogue::kReluBf16) {
        store_bf16(to, relu(sum[m][n]));
      } else if constexpr (kEpilogue == Epilogue::kMask) {  // `out` holds relu's output
        // What was not positive lets no gradient through. `out` is read, then overwritten.
        store(to, load(to) > Vector<T>{} ? sum[m][n] : Vector<T>{});
      } else {
        store(to, sum[m][n]);
      }
    }
}

// One strip of kN vectors of columns over all rows.
template <int kN, Epilogue kEpilogue, class X, class Y>
OCTREENCA_INLINE void strip(int rows, const X* x, int x_stride, int depth, const X* w,
                            int w_stride, const SumOf<X>* bias, Y* out, int out_stride) {
  constexpr int M = kN == 1 ? kSingleRows : kRows;
  for (int row = 0; row < rows; row += M) {
    block<M, kN, kEpilogue>(x + row * x_stride, x_stride, depth, w, w_stride, bias,
                            out + row * out_stride, out_stride);
  }
}

// Calls run(vectors, first column) for all columns, as many vectors at once as there are registers.
template <class T, class Run>
OCTREENCA_INLINE void over_columns(int columns, const Run& run) {
  constexpr int L = kLanes<T>;
  int c = 0;
  const auto some = [&](auto vectors) {
    run(vectors, c);
    c += decltype(vectors)::value * L;
  };
  while (columns - c >= kBlockVectors * L) some(Count<kBlockVectors>{});
  if constexpr (kBlockVectors > 2) {
    if (columns - c >= 3 * L) some(Count<3>{});
    if (columns - c >= 2 * L) some(Count<2>{});
  }
  if (columns - c >= L) some(Count<1>{});
}

// A linear layer on `rows` cells (a multiple of kGroup), `columns` a multiple of the lanes.
template <Epilogue kEpilogue, class X, class Y>
OCTREENCA_INLINE void linear(int rows, const X* x, int x_stride, int depth, const X* w,
                             int columns, const SumOf<X>* bias, Y* out, int out_stride) {
  over_columns<SumOf<X>>(columns, [&](auto vectors, int c) {
    strip<decltype(vectors)::value, kEpilogue>(rows, x, x_stride, depth, w + c, columns,
                                               bias ? bias + c : nullptr, out + c, out_stride);
  });
}

// sums[r][column] += sum over cells of a[cell][r] * b[cell][column]: kR rows, kN vectors.
template <int kR, int kN, class T>
OCTREENCA_INLINE void outer_block(int cells, const T* __restrict a, int a_stride,
                                  const T* __restrict b, int b_stride, T* __restrict sums,
                                  int sums_stride) {
  constexpr int L = kLanes<T>;
  Vector<T> sum[kR][kN];
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 16
    for (int n = 0; n < kN; ++n) sum[r][n] = load(sums + r * sums_stride + n * L);
  for (int i = 0; i < cells; ++i) {
    Vector<T> column[kN];
#pragma GCC unroll 16
    for (int n = 0; n < kN; ++n) column[n] = load(b + i * b_stride + n * L);
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r) {
      const Vector<T> value = broadcast<T>(a[i * a_stride + r]);
#pragma GCC unroll 16
      for (int n = 0; n < kN; ++n) sum[r][n] += value * column[n];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 16
    for (int n = 0; n < kN; ++n) store(sums + r * sums_stride + n * L, sum[r][n]);
}

template <int kN, class T>
OCTREENCA_INLINE void outer_strip(int rows, int cells, const T* a, int a_stride, const T* b,
                                  int b_stride, T* sums, int sums_stride) {
  int r = 0;
  for (; r + 6 <= rows; r += 6) {
    outer_block<6, kN>(cells, a + r, a_stride, b, b_stride, sums + r * sums_stride, sums_stride);
  }
  for (; r + 2 <= rows; r += 2) {
    outer_block<2, kN>(cells, a + r, a_stride, b, b_stride, sums + r * sums_stride, sums_stride);
  }
  if (r < rows) {
    outer_block<1, kN>(cells, a + r, a_stride, b, b_stride, sums + r * sums_stride, sums_stride);
  }
}

template <class T>
OCTREENCA_INLINE void outer(int rows, int cells, const T* a, int a_stride, const T* b,
                            int b_stride, T* sums, int columns) {
  over_columns<T>(columns, [&](auto vectors, int c) {
    outer_strip<decltype(vectors)::value>(rows, cells, a, a_stride, b + c, b_stride, sums + c,
                                          columns);
  });
}

}  // namespace
}  // namespace octreenca
