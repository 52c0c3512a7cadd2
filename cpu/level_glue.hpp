// From the image and the parents' states to a level's first state in training, and the gradient's
// way back. Channels-last states without padding; windows of levels, one origin a sample.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "threads.hpp"
#include "types.hpp"

namespace octreenca {

// A batch of windows of one level.
struct Windows {
  Shape shape;
  std::vector<Origin> origins;
  int channels;
};

inline std::int64_t axis_of(const Origin& origin, int axis) {
  return axis == 0 ? origin.z : axis == 1 ? origin.y : origin.x;
}

// Threads worth starting to copy so many numbers.
inline int copy_threads(int threads, std::int64_t numbers) {
  return static_cast<int>(std::min<std::int64_t>(threads, std::max<std::int64_t>(numbers >> 16, 1)));
}

// The parent of a child's coordinate, counted within the parent's window.
inline std::int64_t parent_at(const Windows& child, const Windows& parent, std::size_t sample,
                              int axis, int factor, std::int64_t at) {
  return (axis_of(child.origins[sample], axis) + at) / factor -
         axis_of(parent.origins[sample], axis);
}

// state = [image | the parents' other channels, as many as both have | 0]. `image(sample)` is the
// part of the level's image that lies under the window. Without parents all but the image is 0.
template <class T, class ImageOf>
void enter(const Windows& child, const ImageOf& image, const Windows& parent,
           const T* parent_state, const int factor[3], T* state, int threads) {
  const Shape& here = child.shape;
  const Shape& above = parent.shape;
  const int C = child.channels;
  const int shared = parent_state ? std::min(C, parent.channels) : 0;
  const std::int64_t rows = here.depth * here.height;
  const auto batch = static_cast<std::int64_t>(child.origins.size());
  for_each(copy_threads(threads, batch * here.cells() * C), batch * here.depth,
           [&](std::int64_t plane) {
    const std::int64_t s = plane / here.depth, z = plane % here.depth;
    const auto sample = static_cast<std::size_t>(s);
    const auto pixels = image(sample);
    for (std::int64_t y = 0; y < here.height; ++y) {
      T* to = state + (s * rows + z * here.height + y) * here.width * C;
      const T* parents = nullptr;
      if (shared) {
        const std::int64_t pz = parent_at(child, parent, sample, 0, factor[0], z);
        const std::int64_t py = parent_at(child, parent, sample, 1, factor[1], y);
        parents = parent_state +
                  ((s * above.depth + pz) * above.height + py) * above.width * parent.channels;
      }
      const T* from = pixels.data + z * pixels.z_stride + y * pixels.y_stride;
      for (std::int64_t x = 0; x < here.width; ++x, to += C) {
        if (shared) {
          const std::int64_t px = parent_at(child, parent, sample, 2, factor[2], x);
          std::copy_n(parents + px * parent.channels, shared, to);
        }
        std::fill(to + shared, to + C, T(0));
        for (int c = 0; c < pixels.channels; ++c) {
          to[c] = from[c * pixels.channel_stride + x * pixels.x_stride];
        }
      }
    }
  });
}

// The gradient of `enter` with respect to the parents' states: sums over the children, whose order
// no number of threads changes. The image's channels get none.
template <class T>
void enter_backward(const Windows& child, const T* gradient, const Windows& parent, int inputs,
                    const int factor[3], T* parent_gradient, int threads) {
  const Shape& here = child.shape;
  const Shape& above = parent.shape;
  const int C = child.channels, shared = std::min(C, parent.channels);
  const auto batch = static_cast<std::int64_t>(child.origins.size());
  for_each(copy_threads(threads, batch * here.cells() * C), batch * above.depth,
           [&](std::int64_t plane) {
    const std::int64_t s = plane / above.depth;
    const auto sample = static_cast<std::size_t>(s);
    // The children of a parent within their window.
    const auto first = [&](int axis, std::int64_t at) {
      return std::max<std::int64_t>((at + axis_of(parent.origins[sample], axis)) * factor[axis] -
                                        axis_of(child.origins[sample], axis), 0);
    };
    const auto end = [&](int axis, std::int64_t at, std::int64_t cells) {
      return std::clamp<std::int64_t>((at + 1 + axis_of(parent.origins[sample], axis)) *
                                              factor[axis] -
                                          axis_of(child.origins[sample], axis), 0, cells);
    };
    const std::int64_t pz = plane % above.depth;
    for (std::int64_t py = 0; py < above.height; ++py) {
      T* row = parent_gradient + (plane * above.height + py) * above.width * parent.channels;
      std::fill_n(row, above.width * parent.channels, T(0));
      for (std::int64_t z = first(0, pz); z < end(0, pz, here.depth); ++z) {
        for (std::int64_t y = first(1, py); y < end(1, py, here.height); ++y) {
          const T* from = gradient + ((s * here.depth + z) * here.height + y) * here.width * C;
          for (std::int64_t px = 0; px < above.width; ++px) {
            T* to = row + px * parent.channels;
            for (std::int64_t x = first(2, px); x < end(2, px, here.width); ++x) {
              for (int c = inputs; c < shared; ++c) to[c] += from[x * C + c];
            }
          }
        }
      }
    }
  });
}

// Cells whose states stay in the cache while all heads are read.
constexpr std::int64_t kHeadsBlock = 512;

// values (samples, [background +] K, cells) from states (samples, cells, channels).
template <class T>
void heads(const T* state, std::int64_t batch, std::int64_t cells, int channels, int inputs,
           int logits, bool background, T* values, int threads) {
  const int heads = logits + (background ? 1 : 0), first = background ? 1 : 0;
  const std::int64_t blocks = (cells + kHeadsBlock - 1) / kHeadsBlock;
  for_each(copy_threads(threads, batch * cells * channels), batch * blocks,
           [&](std::int64_t item) {
    const std::int64_t s = item / blocks, begin = item % blocks * kHeadsBlock;
    const std::int64_t count = std::min(kHeadsBlock, cells - begin);
    T* to = values + s * heads * cells + begin;
    if (background) std::fill_n(to, count, T(0));
    const T* from = state + (s * cells + begin) * channels + inputs;
    for (int k = 0; k < logits; ++k) {
      for (std::int64_t i = 0; i < count; ++i) to[(first + k) * cells + i] = from[i * channels + k];
    }
  });
}

// Its gradient: all of the state's, 0 but for the logits.
template <class T>
void heads_backward(const T* values, std::int64_t batch, std::int64_t cells, int channels,
                    int inputs, int logits, bool background, T* gradient, int threads) {
  const int heads = logits + (background ? 1 : 0), first = background ? 1 : 0;
  const std::int64_t blocks = (cells + kHeadsBlock - 1) / kHeadsBlock;
  for_each(copy_threads(threads, batch * cells * channels), batch * blocks,
           [&](std::int64_t item) {
    const std::int64_t s = item / blocks, begin = item % blocks * kHeadsBlock;
    T* to = gradient + (s * cells + begin) * channels;
    const T* from = values + (s * heads + first) * cells + begin;
    for (std::int64_t i = 0; i < std::min(kHeadsBlock, cells - begin); ++i, to += channels) {
      std::fill_n(to, channels, T(0));
      for (int k = 0; k < logits; ++k) to[inputs + k] = from[k * cells + i];
    }
  });
}

}  // namespace octreenca
