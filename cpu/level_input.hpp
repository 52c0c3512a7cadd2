// The input of a level, made of its image and its parents, and the output of the finest: labels or
// logits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "half.hpp"
#include "level.hpp"
#include "pyramid.hpp"
#include "types.hpp"

namespace octreenca {

inline void put(float* to, float value) { *to = value; }
inline void put(Half* to, float value) { to->bits = float_to_half(value); }
inline float get(const float* from) { return *from; }
inline float get(const Half* from) { return half_to_float(from->bits); }

// Where a level finds its parents, and how their channels become its own.
template <class S>
struct Parents {
  // (z, y) of the coarser level: where that row of parents lies. Without it every cell is an orphan.
  std::function<const S*(std::int64_t, std::int64_t)> row;
  std::int64_t width = 0;
  int stride = 0;                          // numbers from one parent to the next
  const PackedMap<float>* map = nullptr;  // null: as they are
};

// The map from a level's parents, where it has one: `levels` and their packed weights.
inline std::unique_ptr<PackedMap<float>> map_to(const std::vector<OctreeLevel>& levels,
                                                std::size_t level, int lanes) {
  const OctreeLevel& own = levels[level];
  if (own.from_parent == nullptr) return nullptr;
  return std::make_unique<PackedMap<float>>(own.from_parent, own.weights.inputs,
                                            own.weights.channels,
                                            levels[level + 1].weights.channels, lanes);
}

// Fills a slice of a level: its image beside its parents' other channels (zeros on the coarsest).
template <class S>
class LevelInput {
 public:
  LevelInput(const Pyramid& pyramid, std::size_t level, const Shape& shape, const int* factor,
             Parents<S> parents, int inputs, int stride, const KernelSet& kernels, int threads)
      : pyramid_(pyramid),
        level_(level),
        shape_(shape),
        factor_(factor),
        parents_(std::move(parents)),
        inputs_(inputs),
        stride_(stride),
        operations_(operations_of<float, S>(kernels)) {
    for (int i = 0; i < threads; ++i) {
      Own own;
      own.pixels = Buffer<float>(shape.width * inputs + pyramid.scratch_size());
      if (parents_.map != nullptr) {
        own.scratch = Buffer<float>(parents_.map->view().scratch());
        own.handed = Buffer<S>(parents_.width * stride);
      }
      own_.push_back(std::move(own));
    }
  }

  void operator()(int thread, std::int64_t slice, S* to) const {
    Own& own = own_[static_cast<std::size_t>(thread)];
    float* pixels = own.pixels.get();
    float* scratch = pixels + shape_.width * inputs_;
    for (std::int64_t row = 0; row < shape_.slice_height(); ++row) {
      const std::int64_t z = shape_.dimension == 2 ? 0 : slice;
      const std::int64_t y = shape_.dimension == 2 ? slice : row;
      pyramid_.row(level_, z, y, pixels, scratch);
      const S* parents = parents_.row ? handed(own, z / factor_[0], y / factor_[1]) : nullptr;
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
  // A thread's memory.
  struct Own {
    Buffer<float> pixels, scratch;
    Buffer<S> handed;  // what children take of a row of parents, and of which
    std::int64_t z = -1, y = -1;
  };

  // A row of parents with this level's channels. Its next children often follow at once.
  const S* handed(Own& own, std::int64_t z, std::int64_t y) const {
    if (parents_.map == nullptr) return parents_.row(z, y);
    if (own.z != z || own.y != y) {
      operations_.hand_down(parents_.map->view(), parents_.width, parents_.row(z, y),
                            parents_.stride, own.scratch.get(), own.handed.get());
      own.z = z;
      own.y = y;
    }
    return own.handed.get();
  }

  const Pyramid& pyramid_;
  const std::size_t level_;
  const Shape shape_;
  const int* factor_;
  const Parents<S> parents_;
  const int inputs_, stride_;
  const Operations<float, S>& operations_;
  mutable std::vector<Own> own_;
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
