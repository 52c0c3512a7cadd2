// The image of every level, row by row: averages from the fine to the coarse.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "memory.hpp"
#include "threads.hpp"
#include "types.hpp"

namespace octreenca {

inline Shape coarser(const Shape& shape, const int factor[3]) {
  const auto ceil_of = [](std::int64_t n, int f) { return (n + f - 1) / f; };
  return {shape.dimension, ceil_of(shape.depth, factor[0]), ceil_of(shape.height, factor[1]),
          ceil_of(shape.width, factor[2])};
}

// Shapes of all levels, the finest first.
inline std::vector<Shape> shapes_of(const Shape& shape, const std::vector<OctreeLevel>& levels) {
  std::vector<Shape> shapes = {shape};
  for (std::size_t level = 0; level + 1 < levels.size(); ++level) {
    shapes.push_back(coarser(shapes.back(), levels[level].factor));
  }
  return shapes;
}

// A row of an image, [width][channels].
inline void interleave(const Image& image, std::int64_t z, std::int64_t y, std::int64_t width,
                       float* to) {
  const float* from = image.data + z * image.z_stride + y * image.y_stride;
  for (int c = 0; c < image.channels; ++c) {
    const float* channel = from + c * image.channel_stride;
    for (std::int64_t x = 0; x < width; ++x) {
      to[x * image.channels + c] = channel[x * image.x_stride];
    }
  }
}

class Pyramid {
 public:
  // (z, y, to): fills a row of the finest level.
  using Finest = std::function<void(std::int64_t, std::int64_t, float*)>;

  Pyramid(Finest finest, int channels, const std::vector<Shape>& shapes,
          const std::vector<OctreeLevel>& levels)
      : finest_(std::move(finest)),
        channels_(channels),
        shapes_(shapes),
        levels_(levels),
        stored_(shapes.size()) {}

  // Computes levels from `first` on at once; the others row by row when they are asked for.
  void store(std::size_t first, int threads) {
    for (std::size_t level = first; level < shapes_.size(); ++level) {
      const Shape& shape = shapes_[level];
      stored_[level] = Buffer<float>(shape.cells() * channels_);
      for_each(threads, shape.depth * shape.height, [&](std::int64_t row) {
        const Buffer<float> scratch(scratch_size());
        pooled_row(level, row / shape.height, row % shape.height,
                   stored_[level].get() + row * shape.width * channels_, scratch.get());
      });
    }
  }

  std::int64_t scratch_size() const { return 2 * shapes_[0].width * channels_; }

  // [width][channels]
  void row(std::size_t level, std::int64_t z, std::int64_t y, float* to, float* scratch) const {
    if (level == 0) {
      finest_(z, y, to);
    } else if (stored_[level].get() != nullptr) {
      const std::int64_t count = shapes_[level].width * channels_;
      std::copy_n(stored_[level].get() + (z * shapes_[level].height + y) * count, count, to);
    } else {
      pooled_row(level, z, y, to, scratch);
    }
  }

  void forget(std::size_t level) { stored_[level].release(); }

 private:
  // The average of the cells of the next finer level that exist, added up in PyTorch's order.
  void pooled_row(std::size_t level, std::int64_t z, std::int64_t y, float* to,
                  float* scratch) const {
    const Shape &here = shapes_[level], &finer = shapes_[level - 1];
    const int* factor = levels_[level - 1].factor;
    const int n = channels_;
    float* fine = scratch;
    float* rest = scratch + finer.width * n;
    std::fill_n(to, here.width * n, 0.0f);
    std::int64_t rows = 0;
    for (std::int64_t fz = z * factor[0]; fz < std::min((z + 1) * factor[0], finer.depth); ++fz) {
      const std::int64_t end = std::min((y + 1) * factor[1], finer.height);
      for (std::int64_t fy = y * factor[1]; fy < end; ++fy) {
        row(level - 1, fz, fy, fine, rest);
        ++rows;
        for (std::int64_t x = 0; x < here.width; ++x) {
          const std::int64_t last = std::min((x + 1) * factor[2], finer.width);
          for (std::int64_t fx = x * factor[2]; fx < last; ++fx) {
            for (int c = 0; c < n; ++c) to[x * n + c] += fine[fx * n + c];
          }
        }
      }
    }
    for (std::int64_t x = 0; x < here.width; ++x) {
      const std::int64_t cells = std::min((x + 1) * factor[2], finer.width) - x * factor[2];
      for (int c = 0; c < n; ++c) to[x * n + c] /= static_cast<float>(rows * cells);
    }
  }

  const Finest finest_;
  const int channels_;
  const std::vector<Shape>& shapes_;
  const std::vector<OctreeLevel>& levels_;
  std::vector<Buffer<float>> stored_;
};

}  // namespace octreenca
