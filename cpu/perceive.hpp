// Fired cells with their neighbours: the depthwise convolution and its adjoint.
// Internal linkage, and no template of the standard library: see kernels_impl.hpp.
#pragma once

#include "kernels.hpp"
#include "vector.hpp"

namespace octreenca {
namespace {

// Cells that are perceived together, all channels and planes of them: their neighbourhood, some
// 2 * kNear cells of every row, stays in the L1 cache.
constexpr int kNear = 24;

// With 32 registers the 27 taps of a 3-D kernel stay in them: all planes of a cell at once.
constexpr bool kAllTaps = kVectorBytes == 64 && kBlockVectors == 4;

// Up to kChunk fired cells of a slice, with where to find them and their neighbours.
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

// Walks through the fired cells of a slice in chunks.
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

// The three rows that a plane adds to a cell's neighbourhood: y - 1, y, y + 1 of plane
// `depth` in 3-D; in 2-D the slices themselves are the rows.
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

// A plane's nine taps of a cell: three sums side by side hide the latency of an addition.
template <class T, class S>
OCTREENCA_INLINE Vector<T> taps_of(S* const rows[3], const std::int64_t x[3],
                                   const Vector<T>* kernel) {
  Vector<T> a = load(rows[0] + x[0]) * kernel[0];
  Vector<T> b = load(rows[0] + x[1]) * kernel[1];
  Vector<T> d = load(rows[0] + x[2]) * kernel[2];
#pragma GCC unroll 2
  for (int row = 1; row < 3; ++row) {
    a += load(rows[row] + x[0]) * kernel[3 * row];
    b += load(rows[row] + x[1]) * kernel[3 * row + 1];
    d += load(rows[row] + x[2]) * kernel[3 * row + 2];
  }
  return a + b + d;
}

// inputs[cell] = [state | perceived], tight: C and C of them. One plane of taps at a time, so
// that its nine kernel vectors stay in registers.
template <int kDimension, class T, class S>
OCTREENCA_INLINE void perceive(const Slice<S>& slice, const Chunk& chunk, const Weights<T>& weights,
                               const Sizes& sizes, T* inputs, int stride) {
  constexpr int L = kLanes<T>;
  constexpr int kPlanes = kDimension == 2 ? 1 : 3;
  const int channels = sizes.channels, padded = sizes.padded_channels;
  // The state first: its padding is overwritten by what is perceived.
  for (int i = 0; i < chunk.count; ++i) {
    const S* cell = slice.planes[1] + chunk.here[i] + chunk.middle[i];
    for (int c = 0; c < padded; c += L) store(inputs + i * stride + c, load(cell + c));
  }
  if constexpr (kAllTaps && kDimension == 3) {
    for (int c = 0; c < padded; c += L) {
      Vector<T> kernel[27];
#pragma GCC unroll 27
      for (int tap = 0; tap < 27; ++tap) kernel[tap] = load(weights.perceive + tap * padded + c);
      for (int i = 0; i < chunk.count; ++i) {
        const std::int64_t x[3] = {chunk.left[i] + c, chunk.middle[i] + c, chunk.right[i] + c};
        Vector<T> total{};
#pragma GCC unroll 3
        for (int plane = 0; plane < 3; ++plane) {
          const S* rows[3];
          rows_of<kDimension>(slice.planes, chunk, plane, i, rows);
          const Vector<T> sum = taps_of<T>(rows, x, kernel + plane * 9);
          total = plane ? total + sum : sum;
        }
        store(inputs + i * stride + channels + c, total);
      }
    }
    return;
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
          rows_of<kDimension>(slice.planes, chunk, plane, i, rows);
          const std::int64_t x[3] = {chunk.left[i] + c, chunk.middle[i] + c, chunk.right[i] + c};
          T* to = inputs + i * stride + channels + c;
          const Vector<T> sum = taps_of<T>(rows, x, kernel);
          store(to, plane ? load(to) + sum : sum);
        }
      }
    }
  }
}

// The adjoint of perceive: sums of the kernel's gradient, and what every neighbour is owed.
template <int kDimension, class T>
OCTREENCA_INLINE void perceive_backward(const Slice<T>& slice, const Chunk& chunk,
                                        const Weights<T>& weights, const Sizes& sizes,
                                        const T* grad_perceived, int stride,
                                        T* const gradient[3], T* grad_kernel) {
  constexpr int L = kLanes<T>;
  constexpr int kPlanes = kDimension == 2 ? 1 : 3;
  const int padded = sizes.padded_channels;
  if constexpr (kAllTaps && kDimension == 3) {
    for (int c = 0; c < padded; c += L) {
      Vector<T> sum[27];
#pragma GCC unroll 27
      for (int tap = 0; tap < 27; ++tap) sum[tap] = load(grad_kernel + tap * padded + c);
      for (int i = 0; i < chunk.count; ++i) {
        const std::int64_t x[3] = {chunk.left[i] + c, chunk.middle[i] + c, chunk.right[i] + c};
        const Vector<T> grad = load(grad_perceived + i * stride + c);
#pragma GCC unroll 3
        for (int plane = 0; plane < 3; ++plane) {
          const T* rows[3];
          rows_of<kDimension>(slice.planes, chunk, plane, i, rows);
#pragma GCC unroll 9
          for (int tap = 0; tap < 9; ++tap) {
            sum[plane * 9 + tap] += grad * load(rows[tap / 3] + x[tap % 3]);
          }
        }
      }
#pragma GCC unroll 27
      for (int tap = 0; tap < 27; ++tap) store(grad_kernel + tap * padded + c, sum[tap]);

      Vector<T> kernel[27];
#pragma GCC unroll 27
      for (int tap = 0; tap < 27; ++tap) kernel[tap] = load(weights.perceive + tap * padded + c);
      // A cell's neighbour waits for what the cell added to what both share: nine rows of three
      // planes wait side by side.
      for (int i = 0; i < chunk.count; ++i) {
        const std::int64_t x[3] = {chunk.left[i] + c, chunk.middle[i] + c, chunk.right[i] + c};
        const Vector<T> grad = load(grad_perceived + i * stride + c);
#pragma GCC unroll 3
        for (int plane = 0; plane < 3; ++plane) {
          T* rows[3];
          rows_of<kDimension>(gradient, chunk, plane, i, rows);
#pragma GCC unroll 9
          for (int tap = 0; tap < 9; ++tap) {
            T* to = rows[tap / 3] + x[tap % 3];
            store(to, load(to) + grad * kernel[plane * 9 + tap]);
          }
        }
      }
    }
    return;
  }
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
          rows_of<kDimension>(slice.planes, chunk, plane, i, rows);
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

}  // namespace
}  // namespace octreenca
