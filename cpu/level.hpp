// One level of the octree: its packed weights, the map from its parents, and the memory that a step of a slice needs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "fire.hpp"
#include "kernels.hpp"
#include "memory.hpp"
#include "types.hpp"

namespace octreenca {

template <class T>
class PackedWeights {
 public:
  PackedWeights(const RawWeights<T>& raw, int lanes);
  const Weights<T>& view() const { return view_; }
  const Sizes& sizes() const { return view_.sizes; }

  // From sums in packed layout to PyTorch's, added to what is there.
  void unpack(const Gradients<T>& sums, T* perceive, T* perceive_bias, T* hidden_weight,
              T* hidden_bias, T* update) const;

 private:
  RawWeights<T> raw_;
  Weights<T> view_;
  Buffer<T> memory_;
  Buffer<std::uint32_t> pairs_;
};

// The map from a level's parents in the form that the kernels read.
template <class T>
class PackedMap {
 public:
  // `from_parent`: (children - n_in, parents - n_in), the numbers of channels of both.
  PackedMap(const T* from_parent, int inputs, int children, int parents, int lanes);
  const LevelMap<T>& view() const { return view_; }

  // Numbers of a set of sums, and from them to PyTorch's layout, added to what is there.
  std::int64_t sums() const;
  void unpack(const T* sums, T* from_parent) const;

 private:
  LevelMap<T> view_;
  Buffer<T> memory_;
};

// Scratch memory of a thread, and sums of gradients where wanted.
template <class T>
class Workspace {
 public:
  Workspace(const Sizes& sizes, const Shape& shape);
  Scratch<T> scratch;

 private:
  Buffer<std::uint8_t> flags_;
  Buffer<std::uint32_t> x_;
  Buffer<std::int64_t> row_end_;
  Buffer<T> memory_;
};

template <class T>
using Workspaces = std::vector<std::unique_ptr<Workspace<T>>>;

template <class T>
Workspaces<T> make_workspaces(int threads, const Sizes& sizes, const Shape& shape) {
  Workspaces<T> workspaces;
  for (int i = 0; i < threads; ++i) {
    workspaces.push_back(std::make_unique<Workspace<T>>(sizes, shape));
  }
  return workspaces;
}

template <class T>
class PendingUpdates {
 public:
  PendingUpdates(const Sizes& sizes, const Shape& shape)
      : cells_(shape.slice_cells() + kChunk),
        updates_((shape.slice_cells() + kChunk) * sizes.padded_channels),
        view{0, cells_.get(), updates_.get()} {}

 private:
  Buffer<std::uint32_t> cells_;
  Buffer<T> updates_;

 public:
  Pending<T> view;
};

// Which draw a slice of a sample makes in a step.
Draw slice_draw(const Shape& shape, const Seed& seed, const Origin& origin, std::uint32_t key,
               std::int64_t slice);

// The number of fired cells before every slice of every step, [steps * slices + 1].
std::vector<std::int64_t> fired_before(const Shape& shape, const Seed& seed, const Origin& origin,
                                       std::uint32_t sample, int steps, int threads,
                                       const KernelSet& kernels);

// Where every sample's log begins: behind the numbers of the cells that fired in those before.
std::vector<std::int64_t> log_begins(const Shape& shape, int batch, int steps, const Seed& seed,
                                     const std::vector<Origin>& origins, const Sizes& sizes,
                                     const KernelSet& kernels);

// Cells with their channels tight, and padded as the kernels want them.
template <class T>
void pad(const T* tight, T* padded, std::int64_t cells, const Sizes& sizes) {
  const int C = sizes.channels, P = sizes.padded_channels;
  for (std::int64_t i = 0; i < cells; ++i) {
    std::copy_n(tight + i * C, C, padded + i * P);
    std::fill_n(padded + i * P + C, P - C, T(0));
  }
}

template <class T>
void unpad(const T* padded, T* tight, std::int64_t cells, const Sizes& sizes) {
  const int C = sizes.channels, P = sizes.padded_channels;
  for (std::int64_t i = 0; i < cells; ++i) std::copy_n(padded + i * P, C, tight + i * C);
}

inline std::int64_t mirrored_slice(std::int64_t slice, std::int64_t first, std::int64_t end) {
  if (end - first == 1) return first;
  return slice < first ? first + 1 : slice >= end ? end - 2 : slice;
}

template <class T, class S>
const Operations<T, S>& operations_of(const KernelSet& kernels);

}  // namespace octreenca
