// The way from parents to children whose channels differ: a linear map, and its gradient. One set is
// compiled for every instruction set, as kernels_impl.hpp, which includes this, says.
#pragma once

#include "micro_kernel.hpp"
#include "vector.hpp"

namespace octreenca {
namespace {

// Copies `count` parents, `stride` apart, to rows of whole vectors; what lies beyond C stays.
template <class T, class S>
OCTREENCA_INLINE void take_parents(const LevelMap<T>& map, int count, const S* parents,
                                   std::int64_t stride, T* taken) {
  for (int i = 0; i < count; ++i, parents += stride, taken += map.padded_parents) {
    if constexpr (sizeof(S) == sizeof(T)) {  // states in training have no padding to be read
      for (int c = 0; c < map.parents; ++c) taken[c] = parents[c];
    } else {
      for (int c = 0; c < map.padded_parents; c += kLanes<T>) store(taken + c, load(parents + c));
    }
  }
}

template <class T, class S>
void hand_down(const LevelMap<T>& map, std::int64_t cells, const S* parents, std::int64_t stride,
               T* scratch, S* to) {
  const int depth = map.parents - map.inputs, columns = map.padded_children;
  T* taken = scratch;
  T* given = taken + kChunk * map.padded_parents;
  for (std::int64_t first = 0; first < cells; first += kChunk) {
    const int count = static_cast<int>(cells - first < kChunk ? cells - first : kChunk);
    take_parents(map, count, parents + first * stride, stride, taken);
    const int rows = fill_group(count, taken, map.padded_parents);
    linear<Epilogue::kStore>(rows, taken + map.inputs, map.padded_parents, depth, map.forward,
                             columns, nullptr, given, columns);
    S* children = to + first * columns;
    for (int i = 0; i < count * columns; i += kLanes<T>) store(children + i, load(given + i));
  }
}

template <class T>
void hand_down_backward(const LevelMap<T>& map, std::int64_t cells, const T* parents,
                        const T* gradient, T* scratch, T* to, T* sums) {
  const int changing = map.children - map.inputs, columns = map.padded_parents;
  T* taken = scratch;
  T* given = taken + kChunk * columns;
  T* grads = given + kChunk * columns;
  for (int i = 0; i < kChunk * columns; ++i) taken[i] = 0;
  for (std::int64_t first = 0; first < cells; first += kChunk) {
    const int count = static_cast<int>(cells - first < kChunk ? cells - first : kChunk);
    take_parents(map, count, parents + first * map.parents, map.parents, taken);
    const T* from = gradient + first * changing;
    for (int i = 0; i < count * changing; ++i) grads[i] = from[i];
    const int rows = fill_group(count, grads, changing);
    linear<Epilogue::kStore>(rows, grads, changing, changing, map.backward, columns, nullptr, given,
                             columns);
    for (int i = 0; i < count; ++i) {
      T* cell = to + (first + i) * map.parents;
      for (int c = 0; c < map.parents; ++c) cell[c] = given[i * columns + c];
    }
    outer(changing, count, grads, changing, taken, columns, sums, columns);
  }
}

}  // namespace
}  // namespace octreenca
