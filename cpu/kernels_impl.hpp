// The kernels, written once over the vector's width. Included by kernels_*.cpp, each of which
// sets kVectorBytes and kBlockVectors first and is compiled with its own flags.
//
// No template of the standard library is used here: its functions would be shared with the rest
// of the program, in whichever instruction set the linker took first.
#pragma once

#include "fire.hpp"
#include "kernels.hpp"
#include "vector.hpp"

namespace octreenca {
namespace {

// Cells that a micro-kernel takes at once. 6 rows of 4 vectors fill 24 of 32 registers with sums,
// 6 rows of 2 vectors 12 of 16; a single column of vectors needs 12 rows to hide the latency of
// an addition.
constexpr int kRows = 6;
constexpr int kSingleRows = 12;
constexpr int kGroup = 12;
// Cells that are perceived together, all channels and planes of them: their neighbourhood, some
// 2 * kNear cells of every row, stays in the L1 cache.
constexpr int kNear = 24;
static_assert(kChunk % kGroup == 0, "chunks are made of groups");

// ------------------------------------------------------------------ the micro-kernel

enum class Epilogue { kStore, kRelu, kReluBf16, kMask };

// NaN stays NaN, so that a state that is lost is seen to be.
template <class V>
OCTREENCA_INLINE V relu(V value) {
  return value < V{} ? V{} : value;
}

// out[row] = sum over k of x[row][k] * w[k], from `bias` or zero: kM rows, kN vectors of columns.
template <int kM, int kN, Epilogue kEpilogue, class T>
OCTREENCA_INLINE void block(const T* __restrict x, int x_stride, int depth, const T* __restrict w,
                            int w_stride, const T* __restrict bias, T* __restrict out,
                            int out_stride) {
  constexpr int L = kLanes<T>;
  Vector<T> sum[kM][kN];
#pragma GCC unroll 16
  for (int n = 0; n < kN; ++n) {
    const Vector<T> first = bias ? load(bias + n * L) : Vector<T>{};
#pragma GCC unroll 16
    for (int m = 0; m < kM; ++m) sum[m][n] = first;
  }
  for (int k = 0; k < depth; ++k) {
    Vector<T> column[kN];
#pragma GCC unroll 16
    for (int n = 0; n < kN; ++n) column[n] = load(w + k * w_stride + n * L);
#pragma GCC unroll 16
    for (int m = 0; m < kM; ++m) {
      const Vector<T> value = broadcast<T>(x[m * x_stride + k]);
#pragma GCC unroll 16
      for (int n = 0; n < kN; ++n) sum[m][n] += value * column[n];
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kM; ++m)
#pragma GCC unroll 16
    for (int n = 0; n < kN; ++n) {
      T* to = out + m * out_stride + n * L;
      if constexpr (kEpilogue == Epilogue::kRelu) {
        store(to, relu(sum[m][n]));
      } else if constexpr (kEpilogue == Epilogue::kMask) {  // `out` holds relu's output
        // What was not positive lets no gradient through. `out` is read, then overwritten.
        store(to, load(to) > Vector<T>{} ? sum[m][n] : Vector<T>{});
      } else {
        store(to, sum[m][n]);
      }
    }
}

// As `block` with pairs of bfloat16; kReluBf16 writes bfloat16, kStore floats.
template <int kM, int kN, Epilogue kEpilogue>
OCTREENCA_INLINE void block_bf16(const std::uint32_t* __restrict x, int x_stride, int depth,
                                 const std::uint32_t* __restrict w, int w_stride,
                                 const float* __restrict bias, float* __restrict out,
                                 int out_stride) {
  constexpr int L = kLanes<float>;
  Vector<float> sum[kM][kN];
#pragma GCC unroll 16
  for (int n = 0; n < kN; ++n) {
    const Vector<float> first = bias ? load(bias + n * L) : Vector<float>{};
#pragma GCC unroll 16
    for (int m = 0; m < kM; ++m) sum[m][n] = first;
  }
  for (int k = 0; k < depth; ++k) {
    Vector<std::uint32_t> column[kN];
#pragma GCC unroll 16
    for (int n = 0; n < kN; ++n) column[n] = load(w + k * w_stride + n * L);
#pragma GCC unroll 16
    for (int m = 0; m < kM; ++m) {
      const auto value = broadcast<std::uint32_t>(x[m * x_stride + k]);
#pragma GCC unroll 16
      for (int n = 0; n < kN; ++n) sum[m][n] = dot_bf16(sum[m][n], value, column[n]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kM; ++m)
#pragma GCC unroll 16
    for (int n = 0; n < kN; ++n) {
      if constexpr (kEpilogue == Epilogue::kReluBf16) {
        store_bf16(reinterpret_cast<std::uint16_t*>(out + m * out_stride) + n * L,
                   relu(sum[m][n]));
      } else {
        store(out + m * out_stride + n * L, sum[m][n]);
      }
    }
}

// One strip of kN vectors of columns over all rows.
template <int kN, Epilogue kEpilogue, class T>
OCTREENCA_INLINE void strip(int rows, const T* x, int x_stride, int depth, const T* w,
                            int w_stride, const T* bias, T* out, int out_stride) {
  constexpr int M = kN == 1 ? kSingleRows : kRows;
  for (int row = 0; row < rows; row += M) {
    block<M, kN, kEpilogue>(x + row * x_stride, x_stride, depth, w, w_stride, bias,
                            out + row * out_stride, out_stride);
  }
}

template <int kN, Epilogue kEpilogue>
OCTREENCA_INLINE void strip_bf16(int rows, const std::uint32_t* x, int x_stride, int depth,
                                 const std::uint32_t* w, int w_stride, const float* bias,
                                 float* out, int out_stride, int first_column) {
  constexpr int M = kN == 1 ? kSingleRows : kRows;
  // bfloat16 outputs are half as wide as the floats that `out` counts in
  const int offset = kEpilogue == Epilogue::kReluBf16 ? first_column / 2 : first_column;
  for (int row = 0; row < rows; row += M) {
    block_bf16<M, kN, kEpilogue>(x + row * x_stride, x_stride, depth, w, w_stride, bias,
                                 out + row * out_stride + offset, out_stride);
  }
}

// A linear layer on `rows` cells (a multiple of kGroup), `columns` a multiple of the lanes.
template <Epilogue kEpilogue, class T>
OCTREENCA_INLINE void linear(int rows, const T* x, int x_stride, int depth, const T* w, int columns, const T* bias,
            T* out, int out_stride) {
  constexpr int L = kLanes<T>;
  int c = 0;
  const auto run = [&](auto vectors) {
    constexpr int N = decltype(vectors)::value;
    strip<N, kEpilogue>(rows, x, x_stride, depth, w + c, columns, bias ? bias + c : nullptr,
                        out + c, out_stride);
    c += N * L;
  };
  while (columns - c >= kBlockVectors * L) run(Count<kBlockVectors>{});
  if constexpr (kBlockVectors > 2) {
    if (columns - c >= 3 * L) run(Count<3>{});
    if (columns - c >= 2 * L) run(Count<2>{});
  }
  if (columns - c >= L) run(Count<1>{});
}

template <Epilogue kEpilogue>
OCTREENCA_INLINE void linear_bf16(int rows, const std::uint32_t* x, int x_stride, int depth, const std::uint32_t* w,
                 int columns, const float* bias, float* out, int out_stride) {
  constexpr int L = kLanes<float>;
  int c = 0;
  const auto run = [&](auto vectors) {
    constexpr int N = decltype(vectors)::value;
    strip_bf16<N, kEpilogue>(rows, x, x_stride, depth, w + c, columns, bias ? bias + c : nullptr,
                             out, out_stride, c);
    c += N * L;
  };
  while (columns - c >= kBlockVectors * L) run(Count<kBlockVectors>{});
  if constexpr (kBlockVectors > 2) {
    if (columns - c >= 3 * L) run(Count<3>{});
    if (columns - c >= 2 * L) run(Count<2>{});
  }
  if (columns - c >= L) run(Count<1>{});
}

// ------------------------------------------------------------------ which cells

std::int64_t count(const Draw& draw, std::int64_t height, std::int64_t width,
                   std::uint8_t* flags) {
  std::int64_t total = 0;
  for (std::int64_t row = 0; row < height; ++row) {
    const auto y = draw.y + static_cast<std::uint32_t>(row);
    fire_row(flags, width, draw.key, draw.z, y, draw.x, draw.threshold);
    for (std::int64_t x = 0; x < width; ++x) total += flags[x];
  }
  return total;
}

void draw(const Draw& draw, std::int64_t height, std::int64_t width, std::uint8_t* flags,
          Fired& fired) {
  std::int64_t count = 0;
  for (std::int64_t row = 0; row < height; ++row) {
    const auto y = draw.y + static_cast<std::uint32_t>(row);
    fire_row(flags, width, draw.key, draw.z, y, draw.x, draw.threshold);
    for (std::int64_t x = 0; x < width; ++x) {  // no branch to mispredict on every other cell
      fired.x[count] = static_cast<std::uint32_t>(x);
      count += flags[x];
    }
    fired.row_end[row] = count;
  }
  fired.count = count;
}

// Up to kChunk fired cells of a unit, with where to find them and their neighbours.
struct Chunk {
  int count = 0;
  std::int64_t left[kChunk], middle[kChunk], right[kChunk];  // elements from the row's begin
  // elements from the plane's begin to the rows y - 1, y, y + 1 (all 0 in 2-D)
  std::int64_t above[kChunk], here[kChunk], below[kChunk];
  std::uint32_t cell[kChunk];
};

inline std::int64_t mirrored(std::int64_t index, std::int64_t length) {
  if (length == 1) return 0;  // its own neighbour
  return index < 0 ? 1 : index >= length ? length - 2 : index;
}

// Walks through the fired cells of a unit in chunks.
class Walk {
 public:
  Walk(const Fired& fired, std::int64_t height, std::int64_t width, std::int64_t stride)
      : fired_(fired), height_(height), width_(width), stride_(stride) {}

  bool next(Chunk& chunk) {
    int count = 0;
    while (row_ < height_ && count < kChunk) {
      const std::int64_t row_stride = width_ * stride_;
      const std::int64_t above = mirrored(row_ - 1, height_) * row_stride;
      const std::int64_t here = row_ * row_stride;
      const std::int64_t below = mirrored(row_ + 1, height_) * row_stride;
      const std::int64_t left = mirrored(-1, width_), right = mirrored(width_, width_);
      const std::int64_t end = fired_.row_end[row_];
      for (; position_ < end && count < kChunk; ++position_, ++count) {
        const std::int64_t x = fired_.x[position_];
        chunk.left[count] = (x > 0 ? x - 1 : left) * stride_;
        chunk.middle[count] = x * stride_;
        chunk.right[count] = (x < width_ - 1 ? x + 1 : right) * stride_;
        chunk.above[count] = above;
        chunk.here[count] = here;
        chunk.below[count] = below;
        chunk.cell[count] = static_cast<std::uint32_t>(row_ * width_ + x);
      }
      if (position_ == end) ++row_;
    }
    chunk.count = count;
    return count > 0;
  }

 private:
  const Fired& fired_;
  std::int64_t height_, width_, stride_;
  std::int64_t row_ = 0, position_ = 0;
};

// ------------------------------------------------------------------ perceive

// The three rows that a plane adds to a cell's neighbourhood: y - 1, y, y + 1 of plane
// `depth` in 3-D; in 2-D the units themselves are the rows.
template <int kDimension, class S>
OCTREENCA_INLINE void rows_of(S* const planes[3], const Chunk& chunk, int plane, int i,
                              S* rows[3]) {
  if constexpr (kDimension == 2) {
    rows[0] = planes[0];
    rows[1] = planes[1];
    rows[2] = planes[2];
  } else {
    rows[0] = planes[plane] + chunk.above[i];
    rows[1] = planes[plane] + chunk.here[i];
    rows[2] = planes[plane] + chunk.below[i];
  }
}

// inputs[cell] = [state | perceived], tight: C and C of them. One plane of taps at a time, so
// that its nine kernel vectors stay in registers.
template <int kDimension, class T, class S>
OCTREENCA_INLINE void perceive(const Unit<S>& unit, const Chunk& chunk, const Weights<T>& weights,
                               const Sizes& sizes, T* inputs, int stride) {
  constexpr int L = kLanes<T>;
  constexpr int kPlanes = kDimension == 2 ? 1 : 3;
  const int channels = sizes.channels, padded = sizes.padded_channels;
  // The state first: its padding is overwritten by what is perceived.
  for (int i = 0; i < chunk.count; ++i) {
    const S* cell = unit.planes[1] + chunk.here[i] + chunk.middle[i];
    for (int c = 0; c < padded; c += L) store(inputs + i * stride + c, load(cell + c));
  }
  for (int begin = 0; begin < chunk.count; begin += kNear) {
    const int end = begin + kNear < chunk.count ? begin + kNear : chunk.count;
    for (int plane = 0; plane < kPlanes; ++plane) {
      for (int c = 0; c < padded; c += L) {
        Vector<T> kernel[9];
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; ++tap) {
          kernel[tap] = load(weights.perceive + (plane * 9 + tap) * padded + c);
        }
        for (int i = begin; i < end; ++i) {
          const S* rows[3];
          rows_of<kDimension>(unit.planes, chunk, plane, i, rows);
          const std::int64_t left = chunk.left[i] + c, middle = chunk.middle[i] + c,
                             right = chunk.right[i] + c;
          Vector<T> a = load(rows[0] + left) * kernel[0];
          Vector<T> b = load(rows[0] + middle) * kernel[1];
          Vector<T> d = load(rows[0] + right) * kernel[2];
          a += load(rows[1] + left) * kernel[3];
          b += load(rows[1] + middle) * kernel[4];
          d += load(rows[1] + right) * kernel[5];
          a += load(rows[2] + left) * kernel[6];
          b += load(rows[2] + middle) * kernel[7];
          d += load(rows[2] + right) * kernel[8];
          T* to = inputs + i * stride + channels + c;
          const Vector<T> sum = a + b + d;
          store(to, plane ? load(to) + sum : sum);
        }
      }
    }
  }
}

// The micro-kernel takes whole groups: cells that are not there are zeros.
template <class T>
int fill_group(int count, T* rows, int stride) {
  const int whole = (count + kGroup - 1) / kGroup * kGroup;
  for (int i = count * stride; i < whole * stride; ++i) rows[i] = 0;
  return whole;
}

OCTREENCA_INLINE int input_stride(const Sizes& sizes) {
  return sizes.padded_doubled + sizes.padded_channels;
}

// C = 16 and H = 64 are what the paper uses and what the planner chooses for most data sets. With
// these sizes known to the compiler the micro-kernel reaches 94 % of the processor's peak, without
// them 87 %.
template <bool kPaper>
OCTREENCA_INLINE Sizes sizes_of(const Sizes& sizes) {
  if constexpr (kPaper) return {sizes.dimension, 16, sizes.inputs, 64, 16, 64, 32};
  return sizes;
}

inline bool is_paper(const Sizes& sizes) {
  return sizes.channels == 16 && sizes.hidden == 64 && sizes.padded_channels == 16 &&
         sizes.padded_hidden == 64 && sizes.padded_doubled == 32;
}

// Calls work(dimension, is_paper) with both as types.
template <class Work>
OCTREENCA_INLINE void specialised(const Sizes& sizes, const Work& work) {
  const bool paper = is_paper(sizes);
  if (sizes.dimension == 2) {
    paper ? work(Count<2>{}, Count<1>{}) : work(Count<2>{}, Count<0>{});
  } else {
    paper ? work(Count<3>{}, Count<1>{}) : work(Count<3>{}, Count<0>{});
  }
}

// ------------------------------------------------------------------ forward

template <int kDimension, bool kPaper, class T, class S>
void forward_in(const Unit<S>& unit, const Weights<T>& weights, Scratch<T>& scratch,
                Pending<T>& pending) {
  const Sizes sizes = sizes_of<kPaper>(weights.sizes);
  const int stride = input_stride(sizes), padded = sizes.padded_channels;
  Walk walk(scratch.fired, unit.height, unit.width, padded);
  Chunk chunk;
  pending.count = 0;
  while (walk.next(chunk)) {
    perceive<kDimension>(unit, chunk, weights, sizes, scratch.inputs, stride);
    const int rows = fill_group(chunk.count, scratch.inputs, stride);
    T* updates = pending.updates + pending.count * padded;
    for (int row = 0; row < rows; row += kGroup) {
      linear<Epilogue::kRelu>(kGroup, scratch.inputs + row * stride, stride, 2 * sizes.channels,
                              weights.hidden, sizes.padded_hidden, weights.hidden_bias,
                              scratch.hidden, sizes.padded_hidden);
      linear<Epilogue::kStore, T>(kGroup, scratch.hidden, sizes.padded_hidden, sizes.hidden,
                                  weights.update, padded, nullptr, updates + row * padded, padded);
    }
    for (int i = 0; i < chunk.count; ++i) pending.cells[pending.count + i] = chunk.cell[i];
    pending.count += chunk.count;
  }
}

template <class T, class S>
void forward(const Unit<S>& unit, const Weights<T>& weights, Scratch<T>& scratch,
             Pending<T>& pending) {
  specialised(weights.sizes, [&](auto dimension, auto paper) {
    forward_in<decltype(dimension)::value, decltype(paper)::value>(unit, weights, scratch, pending);
  });
}

template <int kDimension, bool kPaper, class S>
void forward_bf16_in(const Unit<S>& unit, const Weights<float>& weights, Scratch<float>& scratch,
                     Pending<float>& pending) {
  constexpr int L = kLanes<float>;
  const Sizes sizes = sizes_of<kPaper>(weights.sizes);
  const int stride = input_stride(sizes), padded = sizes.padded_channels;
  const int pairs = sizes.padded_hidden / 2;
  auto* words = reinterpret_cast<std::uint32_t*>(scratch.grad_inputs);
  Walk walk(scratch.fired, unit.height, unit.width, padded);
  Chunk chunk;
  pending.count = 0;
  while (walk.next(chunk)) {
    perceive<kDimension>(unit, chunk, weights, sizes, scratch.inputs, stride);
    const int rows = fill_group(chunk.count, scratch.inputs, stride);
    float* updates = pending.updates + pending.count * padded;
    for (int row = 0; row < rows; row += kGroup) {
      for (int i = 0; i < kGroup; ++i) {
        auto* to = reinterpret_cast<std::uint16_t*>(words + i * stride);
        for (int c = 0; c < sizes.padded_doubled; c += L) {
          store_bf16(to + c, load(scratch.inputs + (row + i) * stride + c));
        }
      }
      linear_bf16<Epilogue::kReluBf16>(kGroup, words, stride, sizes.channels, weights.hidden_pairs,
                                       sizes.padded_hidden, weights.hidden_bias, scratch.hidden,
                                       pairs);
      linear_bf16<Epilogue::kStore>(
          kGroup, reinterpret_cast<const std::uint32_t*>(scratch.hidden), pairs,
          (sizes.hidden + 1) / 2, weights.update_pairs, padded, nullptr, updates + row * padded,
          padded);
    }
    for (int i = 0; i < chunk.count; ++i) pending.cells[pending.count + i] = chunk.cell[i];
    pending.count += chunk.count;
  }
}

template <class S>
void forward_bf16(const Unit<S>& unit, const Weights<float>& weights, Scratch<float>& scratch,
                  Pending<float>& pending) {
  specialised(weights.sizes, [&](auto dimension, auto paper) {
    forward_bf16_in<decltype(dimension)::value, decltype(paper)::value>(unit, weights, scratch, pending);
  });
}

// ------------------------------------------------------------------ state and log

template <class T>
struct Quad {
  typedef T type __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
};

// Copies `count` elements, swaps them if kSwap. Four at a time, the last four overlapping:
// neither reads nor writes anything beyond.
template <bool kSwap, class T>
OCTREENCA_INLINE void exchange(T* a, T* b, int count) {
  using V = typename Quad<T>::type;
  if (count < 4) {
    for (int c = 0; c < count; ++c) {
      const T old = a[c];
      if constexpr (kSwap) a[c] = b[c];
      b[c] = old;
    }
    return;
  }
  const int last = count - 4;
  const V last_a = *reinterpret_cast<V*>(a + last), last_b = *reinterpret_cast<V*>(b + last);
  for (int c = 0; c < last; c += 4) {
    const V old = *reinterpret_cast<V*>(a + c);
    if constexpr (kSwap) *reinterpret_cast<V*>(a + c) = *reinterpret_cast<V*>(b + c);
    *reinterpret_cast<V*>(b + c) = old;
  }
  if constexpr (kSwap) *reinterpret_cast<V*>(a + last) = last_b;
  *reinterpret_cast<V*>(b + last) = last_a;
}

template <class T, class S>
void commit(const Sizes& sizes, const Pending<T>& pending, S* unit, T* log) {
  constexpr int L = kLanes<T>;
  const int padded = sizes.padded_channels, changing = sizes.outputs();
  for (std::int64_t i = 0; i < pending.count; ++i) {
    S* cell = unit + static_cast<std::int64_t>(pending.cells[i]) * padded;
    if constexpr (sizeof(S) == sizeof(T)) {
      if (log) exchange<false>(reinterpret_cast<T*>(cell) + sizes.inputs, log + i * changing, changing);
    }
    const T* update = pending.updates + i * padded;
    for (int c = 0; c < padded; c += L) store(cell + c, load(cell + c) + load(update + c));
  }
}

template <class T>
void swap_log(const Sizes& sizes, const Fired& fired, std::int64_t height, std::int64_t width,
              T* unit, T* log) {
  const int padded = sizes.padded_channels, changing = sizes.outputs();
  std::int64_t i = 0;
  for (std::int64_t row = 0; row < height; ++row) {
    T* begin = unit + row * width * padded + sizes.inputs;
    for (; i < fired.row_end[row]; ++i) {
      exchange<true>(begin + static_cast<std::int64_t>(fired.x[i]) * padded, log + i * changing,
                     changing);
    }
  }
}

template <class T>
void gather(const Sizes& sizes, const Fired& fired, std::int64_t height, std::int64_t width,
            const T* gradient, T* gathered) {
  const int padded = sizes.padded_channels;
  std::int64_t i = 0;
  for (std::int64_t row = 0; row < height; ++row) {
    const T* begin = gradient + row * width * padded;
    for (; i < fired.row_end[row]; ++i) {
      const T* cell = begin + static_cast<std::int64_t>(fired.x[i]) * padded;
      for (int c = 0; c < padded; c += kLanes<T>) store(gathered + i * padded + c, load(cell + c));
    }
  }
}

// ------------------------------------------------------------------ backward

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
OCTREENCA_INLINE void outer(int rows, int cells, const T* a, int a_stride, const T* b, int b_stride, T* sums,
           int columns) {
  constexpr int L = kLanes<T>;
  int c = 0;
  const auto run = [&](auto vectors) {
    constexpr int N = decltype(vectors)::value;
    outer_strip<N>(rows, cells, a, a_stride, b + c, b_stride, sums + c, columns);
    c += N * L;
  };
  while (columns - c >= kBlockVectors * L) run(Count<kBlockVectors>{});
  if constexpr (kBlockVectors > 2) {
    if (columns - c >= 3 * L) run(Count<3>{});
    if (columns - c >= 2 * L) run(Count<2>{});
  }
  if (columns - c >= L) run(Count<1>{});
}

// The adjoint of perceive: sums of the kernel's gradient, and what every neighbour is owed.
template <int kDimension, class T>
OCTREENCA_INLINE void perceive_backward(const Unit<T>& unit, const Chunk& chunk, const Weights<T>& weights,
                       const Sizes& sizes, const T* grad_perceived, int stride, T* const gradient[3], T* grad_kernel) {
  constexpr int L = kLanes<T>;
  constexpr int kPlanes = kDimension == 2 ? 1 : 3;
  const int padded = sizes.padded_channels;
  for (int begin = 0; begin < chunk.count; begin += kNear) {
    const int end = begin + kNear < chunk.count ? begin + kNear : chunk.count;
    for (int plane = 0; plane < kPlanes; ++plane) {
      for (int c = 0; c < padded; c += L) {
        Vector<T> sum[9];
        T* sums = grad_kernel + plane * 9 * padded + c;
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; ++tap) sum[tap] = load(sums + tap * padded);
        for (int i = begin; i < end; ++i) {
          const T* rows[3];
          rows_of<kDimension>(unit.planes, chunk, plane, i, rows);
          const Vector<T> grad = load(grad_perceived + i * stride + c);
          const std::int64_t x[3] = {chunk.left[i] + c, chunk.middle[i] + c, chunk.right[i] + c};
#pragma GCC unroll 9
          for (int tap = 0; tap < 9; ++tap) sum[tap] += grad * load(rows[tap / 3] + x[tap % 3]);
        }
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; ++tap) store(sums + tap * padded, sum[tap]);

        Vector<T> kernel[9];
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; ++tap) {
          kernel[tap] = load(weights.perceive + (plane * 9 + tap) * padded + c);
        }
        for (int i = begin; i < end; ++i) {
          T* rows[3];
          rows_of<kDimension>(gradient, chunk, plane, i, rows);
          const Vector<T> grad = load(grad_perceived + i * stride + c);
          const std::int64_t x[3] = {chunk.left[i] + c, chunk.middle[i] + c, chunk.right[i] + c};
          // One after the other: at a mirrored border two of them are the same cell.
#pragma GCC unroll 9
          for (int tap = 0; tap < 9; ++tap) {
            T* to = rows[tap / 3] + x[tap % 3];
            store(to, load(to) + grad * kernel[tap]);
          }
        }
      }
    }
  }
}

template <int kDimension, bool kPaper, class T>
void backward_in(const Unit<T>& unit, const Weights<T>& weights, Scratch<T>& scratch,
                 const Fired& fired, const T* gathered, T* const gradient[3],
                 Gradients<T>& gradients) {
  constexpr int L = kLanes<T>;
  const Sizes sizes = sizes_of<kPaper>(weights.sizes);
  const int stride = input_stride(sizes), padded = sizes.padded_channels;
  const int hidden = sizes.padded_hidden, channels = sizes.channels;
  Walk walk(fired, unit.height, unit.width, padded);
  Chunk chunk;
  while (walk.next(chunk)) {
    perceive<kDimension>(unit, chunk, weights, sizes, scratch.inputs, stride);
    const int rows = fill_group(chunk.count, scratch.inputs, stride);
    for (int i = 0; i < chunk.count * padded; ++i) scratch.grad_out[i] = gathered[i];
    fill_group(chunk.count, scratch.grad_out, padded);
    gathered += static_cast<std::int64_t>(chunk.count) * padded;
    const T* grad_out = scratch.grad_out + sizes.inputs;
    for (int row = 0; row < rows; row += kGroup) {
      T* activations = scratch.hidden + row * hidden;
      T* grad_hidden = scratch.grad_hidden + row * hidden;
      linear<Epilogue::kRelu>(kGroup, scratch.inputs + row * stride, stride, 2 * channels,
                              weights.hidden, hidden, weights.hidden_bias, activations, hidden);
      for (int i = 0; i < kGroup * hidden; i += L) store(grad_hidden + i, load(activations + i));
      linear<Epilogue::kMask, T>(kGroup, grad_out + row * padded, padded, sizes.outputs(),
                                 weights.update_transposed, hidden, nullptr, grad_hidden, hidden);
      linear<Epilogue::kStore, T>(kGroup, grad_hidden, hidden, sizes.hidden,
                                  weights.hidden_transposed, sizes.padded_doubled, nullptr,
                                  scratch.grad_inputs + row * stride, stride);
    }
    outer(sizes.outputs(), chunk.count, grad_out, padded, scratch.hidden, hidden,
          gradients.update_transposed, hidden);
    outer(2 * channels, chunk.count, scratch.inputs, stride, scratch.grad_hidden, hidden,
          gradients.hidden, hidden);
    for (int j = 0; j < hidden; j += L) {
      Vector<T> sum = load(gradients.hidden_bias + j);
      for (int i = 0; i < chunk.count; ++i) sum += load(scratch.grad_hidden + i * hidden + j);
      store(gradients.hidden_bias + j, sum);
    }
    // Gradient of the cell's own state; its padding would be the gradient of what it perceived.
    for (int i = 0; i < chunk.count; ++i) {
      T* cell = gradient[1] + chunk.here[i] + chunk.middle[i];
      const T* grad = scratch.grad_inputs + i * stride;
      int c = 0;
      for (; c + L <= channels; c += L) store(cell + c, load(cell + c) + load(grad + c));
      for (; c < channels; ++c) cell[c] += grad[c];
    }
    // Whole vectors of the perceived part's gradient: what lies beyond meets zeros of the kernel.
    perceive_backward<kDimension>(unit, chunk, weights, sizes, scratch.grad_inputs + channels, stride,
                                  gradient, gradients.perceive);
  }
}

template <class T>
void backward(const Unit<T>& unit, const Weights<T>& weights, Scratch<T>& scratch,
              const Fired& fired, const T* gathered, T* const gradient[3],
              Gradients<T>& gradients) {
  specialised(weights.sizes, [&](auto dimension, auto paper) {
    backward_in<decltype(dimension)::value, decltype(paper)::value>(unit, weights, scratch, fired, gathered, gradient, gradients);
  });
}

// ------------------------------------------------------------------ the peak

template <class T>
double burn(std::int64_t iterations, T* sink) {
  constexpr int N = 12;  // enough sums to hide the latency, few enough for 16 registers
  Vector<T> sum[N];
#pragma GCC unroll 12
  for (int n = 0; n < N; ++n) sum[n] = broadcast<T>(T(1 + 1e-3 * n));
  const Vector<T> factor = broadcast<T>(sink[0]), term = broadcast<T>(sink[1]);
  for (std::int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int n = 0; n < N; ++n) {
      sum[n] = sum[n] * factor + term;
#if defined(__aarch64__)
      asm volatile("" : "+w"(sum[n]));
#elif defined(__x86_64__)
      asm volatile("" : "+x"(sum[n]));
#endif
    }
  }
  T total = 0;
#pragma GCC unroll 12
  for (int n = 0; n < N; ++n) total += sum[n][0];
  sink[0] += T(1e-30) * total;
  return 2.0 * N * kLanes<T> * static_cast<double>(iterations);
}

template <class T, class S>
constexpr Operations<T, S> operations() {
  Operations<T, S> set{};
  set.lanes = kLanes<T>;
  set.count = count;
  set.draw = draw;
  set.forward = forward<T, S>;
  if constexpr (sizeof(T) == sizeof(float)) set.forward_bf16 = forward_bf16<S>;
  set.commit = commit<T, S>;
  if constexpr (sizeof(T) == sizeof(S)) {
    set.swap = swap_log<T>;
    set.gather = gather<T>;
    set.backward = backward<T>;
  }
  return set;
}

}  // namespace
}  // namespace octreenca
