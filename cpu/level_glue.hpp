// From the image and the parents' states to a level's first state in training, and the gradient's
// way back. Channels-last states without padding; windows of levels, one origin a sample.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "level.hpp"
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

// How parents' channels become their children's where these differ.
template <class T>
struct Handing {
  const PackedMap<T>& map;
  const Operations<T, T>& operations;
};

// Cells whose channels are handed down together.
constexpr std::int64_t kHandedBlock = 1024;

// What children take of parents, both without the image's channels: [cells][C - n_in].
template <class T>
void hand_down_all(const Handing<T>& handing, std::int64_t cells, const T* parents, T* to,
                   int threads) {
  const LevelMap<T>& map = handing.map.view();
  const std::int64_t blocks = (cells + kHandedBlock - 1) / kHandedBlock;
  for_each(copy_threads(threads, cells * map.children), blocks, [&](std::int64_t block) {
    const std::int64_t first = block * kHandedBlock, count = std::min(kHandedBlock, cells - first);
    const Buffer<T> scratch(map.scratch()), handed(count * map.padded_children);
    handing.operations.hand_down(map, count, parents + first * map.parents, map.parents,
                                 scratch.get(), handed.get());
    for (std::int64_t i = 0; i < count; ++i) {
      std::copy_n(handed.get() + i * map.padded_children, map.children,
                  to + (first + i) * map.children);
    }
  });
}

// state = [image | the parents' other channels, through `handing` if given]. `image(sample)` is the
// part of the level's image that lies under the window. Without parents all but the image is 0.
template <class T, class ImageOf>
void enter(const Windows& child, const ImageOf& image, const Windows& parent,
           const T* parent_state, const int factor[3], const Handing<T>* handing, T* state,
           int threads) {
  const Shape& here = child.shape;
  const Shape& above = parent.shape;
  const int C = child.channels;
  const int stride = handing ? handing->map.view().padded_children : parent.channels;
  const std::int64_t rows = here.depth * here.height;
  const auto batch = static_cast<std::int64_t>(child.origins.size());
  for_each(copy_threads(threads, batch * here.cells() * C), batch * here.depth,
           [&](std::int64_t plane) {
    const std::int64_t s = plane / here.depth, z = plane % here.depth;
    const auto sample = static_cast<std::size_t>(s);
    const auto pixels = image(sample);
    Buffer<T> scratch, handed;  // what the children take of a row of parents
    std::int64_t handed_row = -1;
    if (handing) {
      scratch = Buffer<T>(handing->map.view().scratch());
      handed = Buffer<T>(above.width * stride);
    }
    for (std::int64_t y = 0; y < here.height; ++y) {
      T* to = state + (s * rows + z * here.height + y) * here.width * C;
      const T* parents = nullptr;
      if (parent_state) {
        const std::int64_t pz = parent_at(child, parent, sample, 0, factor[0], z);
        const std::int64_t py = parent_at(child, parent, sample, 1, factor[1], y);
        parents = parent_state +
                  ((s * above.depth + pz) * above.height + py) * above.width * parent.channels;
        if (handing) {
          if (py != handed_row) {
            handing->operations.hand_down(handing->map.view(), above.width, parents,
                                          parent.channels, scratch.get(), handed.get());
          }
          handed_row = py;
          parents = handed.get();
        }
      }
      const T* from = pixels.data + z * pixels.z_stride + y * pixels.y_stride;
      for (std::int64_t x = 0; x < here.width; ++x, to += C) {
        if (parents) {
          const std::int64_t px = parent_at(child, parent, sample, 2, factor[2], x);
          std::copy_n(parents + px * stride, C, to);
        } else {
          std::fill_n(to, C, T(0));
        }
        for (int c = 0; c < pixels.channels; ++c) {
          to[c] = from[c * pixels.channel_stride + x * pixels.x_stride];
        }
      }
    }
  });
}

// The gradient of `enter` with respect to the parents' states: sums over the children, whose order
// no number of threads changes. The image's channels get none. With `handing`, whose gradient is
// added to `from_parent_gradient`, the parents' states are needed too.
template <class T>
void enter_backward(const Windows& child, const T* gradient, const Windows& parent, int inputs,
                    const int factor[3], const Handing<T>* handing, const T* parent_state,
                    T* parent_gradient, T* from_parent_gradient, int threads) {
  const Shape& here = child.shape;
  const Shape& above = parent.shape;
  const int C = child.channels, changing = C - inputs;
  const std::int64_t count = handing ? handing->map.sums() : 0;
  const auto batch = static_cast<std::int64_t>(child.origins.size());
  const Buffer<T> sums(batch * above.depth * count, nullptr);  // of every plane
  for_each(copy_threads(threads, batch * here.cells() * C), batch * above.depth,
           [&](std::int64_t plane) {
    const std::int64_t s = plane / above.depth;
    Buffer<T> scratch, collected;  // a row of gradients of what was handed down
    if (handing) {
      scratch = Buffer<T>(handing->map.view().scratch());
      collected = Buffer<T>(above.width * changing);
    }
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
      const std::int64_t begin = (plane * above.height + py) * above.width * parent.channels;
      T* row = parent_gradient + begin + inputs;
      std::int64_t stride = parent.channels;
      if (handing) {
        row = collected.get();
        stride = changing;
        std::fill_n(row, above.width * changing, T(0));
      } else {
        std::fill_n(parent_gradient + begin, above.width * parent.channels, T(0));
      }
      for (std::int64_t z = first(0, pz); z < end(0, pz, here.depth); ++z) {
        for (std::int64_t y = first(1, py); y < end(1, py, here.height); ++y) {
          const T* from = gradient + ((s * here.depth + z) * here.height + y) * here.width * C;
          for (std::int64_t px = 0; px < above.width; ++px) {
            T* to = row + px * stride;
            for (std::int64_t x = first(2, px); x < end(2, px, here.width); ++x) {
              const T* cell = from + x * C + inputs;
              for (int c = 0; c < changing; ++c) to[c] += cell[c];
            }
          }
        }
      }
      if (handing) {
        handing->operations.hand_down_backward(handing->map.view(), above.width,
                                               parent_state + begin, row, scratch.get(),
                                               parent_gradient + begin, sums.get() + plane * count);
      }
    }
  });
  for (std::int64_t plane = 0; handing && plane < batch * above.depth; ++plane) {
    handing->map.unpack(sums.get() + plane * count, from_parent_gradient);
  }
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
