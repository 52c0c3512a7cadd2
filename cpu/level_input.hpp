// The input of a level, made of its image and its parents, and the output of the finest: labels or
// logits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "half.hpp"
#include "pyramid.hpp"
#include "types.hpp"

namespace octreenca {

inline void put(float* to, float value) { *to = value; }
inline void put(Half* to, float value) { to->bits = float_to_half(value); }
inline float get(const float* from) { return *from; }
inline float get(const Half* from) { return half_to_float(from->bits); }

// Fills a slice of a level: its image beside its parents' other channels (zeros on the coarsest).
template <class S>
class LevelInput {
 public:
  // (z, y) of the coarser level: where that row of parents lies.
  using ParentRow = std::function<const S*(std::int64_t, std::int64_t)>;

  // Without a function every cell is an orphan.
  LevelInput(const Pyramid& pyramid, std::size_t level, const Shape& shape, const int* factor,
           ParentRow parent_row, int inputs, int stride, int threads)
      : pyramid_(pyramid),
        level_(level),
        shape_(shape),
        factor_(factor),
        parent_row_(std::move(parent_row)),
        inputs_(inputs),
        stride_(stride) {
    for (int i = 0; i < threads; ++i) {
      rows_.emplace_back(shape.width * inputs + pyramid.scratch_size());
    }
  }

  void operator()(int thread, std::int64_t slice, S* to) const {
    float* pixels = rows_[static_cast<std::size_t>(thread)].get();
    float* scratch = pixels + shape_.width * inputs_;
    for (std::int64_t row = 0; row < shape_.slice_height(); ++row) {
      const std::int64_t z = shape_.dimension == 2 ? 0 : slice;
      const std::int64_t y = shape_.dimension == 2 ? slice : row;
      pyramid_.row(level_, z, y, pixels, scratch);
      const S* parents = parent_row_ ? parent_row_(z / factor_[0], y / factor_[1]) : nullptr;
      for (std::int64_t x = 0; x < shape_.width; ++x, to += stride_) {
        if (parents != nullptr) {
          std::copy_n(parents + x / factor_[2] * stride_, stride_, to);
        } else {
          std::fill_n(to, stride_, S{});
        }
        for (int c = 0; c < inputs_; ++c) put(to + c, pixels[x * inputs_ + c]);
      }
    }
  }

 private:
  const Pyramid& pyramid_;
  const std::size_t level_;
  const Shape shape_;
  const int* factor_;
  const ParentRow parent_row_;
  const int inputs_, stride_;
  std::vector<Buffer<float>> rows_;
};

// Writes a slice of the finest level; `shape` is that of the output.
template <class S>
void write(const Output& output, const Shape& shape, std::int64_t slice, const S* state, int inputs,
           int stride) {
  const std::int64_t first = slice * shape.slice_cells(), cells = shape.slice_cells();
  const int K = output.logits;
  if (output.values != nullptr) {
    float* to = output.values + first;
    if (output.background) {
      std::fill_n(to, cells, 0.0f);
      to += shape.cells();
    }
    for (int k = 0; k < K; ++k, to += shape.cells()) {
      for (std::int64_t i = 0; i < cells; ++i) to[i] = get(state + i * stride + inputs + k);
    }
    return;
  }
  for (std::int64_t i = 0; i < cells; ++i) {
    const S* logits = state + i * stride + inputs;
    int label = 0;
    float best = output.background ? 0.0f : get(logits);
    for (int k = output.background ? 0 : 1; k < K; ++k) {
      const float value = get(logits + k);
      if (value > best) {
        best = value;
        label = k + output.background;
      }
    }
    if (output.label_bytes == 1) {
      static_cast<std::uint8_t*>(output.labels)[first + i] = static_cast<std::uint8_t>(label);
    } else {
      static_cast<std::int16_t*>(output.labels)[first + i] = static_cast<std::int16_t>(label);
    }
  }
}

}  // namespace octreenca
