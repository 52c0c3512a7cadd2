// What a set of kernels computes, and the plain data it is handed. One set is compiled for every
// instruction set (kernels_*.cpp, all from kernels_impl.hpp); `kernels.cpp` chooses at run time.
//
// A state is channels-last: the channels of a cell lie side by side, padded with zeros to whole
// vectors. The work is cut into slices: a row of a 2-D level, a plane of a 3-D level. One step of a
// slice needs the slices before and behind it as they were before the step, so its updates wait in
// a `Pending` until nobody needs the old values any more.
#pragma once

#include <cstddef>
#include <cstdint>

#include "half.hpp"  // states may be kept in float16; computing is done in float

namespace octreenca {

// Cells that go through the two linear layers together; a multiple of the 12 that the
// micro-kernel takes at once. Their inputs and hidden units stay in the L1 and L2 caches.
constexpr int kChunk = 96;
// Fired cells are written in whole vectors.
constexpr int kFiredRoom = 16;

// Sizes of one level's automaton. Padded sizes are multiples of the kernels' lanes.
struct Sizes {
  int dimension;        // 2 or 3
  int channels;         // C
  int inputs;           // n_in: image channels, which come first and never change
  int hidden;           // H
  int padded_channels;  // elements from one cell to the next
  int padded_hidden;
  int padded_doubled;  // of 2 C
  int taps() const { return dimension == 2 ? 9 : 27; }
  int outputs() const { return channels - inputs; }
};

// One level's weights as the micro-kernels read them: contiguous over what the lanes hold.
template <class T>
struct Weights {
  Sizes sizes;
  const T* perceive;     // [taps][padded_channels]
  const T* hidden;       // [2 C][padded_hidden]
  const T* hidden_bias;  // [padded_hidden], the bias of perceive folded in
  const T* update;       // [H][padded_channels], image channels zero
  // for the backward pass
  const T* update_transposed;  // [C - n_in][padded_hidden]
  const T* hidden_transposed;  // [H][padded_doubled]
  // two bfloat16 a word, of rows 2 k (low half) and 2 k + 1
  const std::uint32_t* hidden_pairs;  // [C][padded_hidden]
  const std::uint32_t* update_pairs;  // [ceil(H / 2)][padded_channels]
};

// The linear map from the parents' logits and hidden channels to the children's, where these differ.
// Its columns are padded to whole vectors, and zero for the image's channels.
template <class T>
struct LevelMap {
  int inputs;                            // n_in
  int parents, children;                 // C of either level
  int padded_parents, padded_children;
  const T* forward;   // [parents - n_in][padded_children]
  const T* backward;  // [children - n_in][padded_parents]

  // Numbers of scratch memory that either way needs.
  std::int64_t scratch() const {
    return std::int64_t{kChunk} * (2 * padded_parents + padded_children);
  }
};

// Which cells of a slice fire, row by row.
struct Fired {
  std::uint32_t* x;      // of all fired cells, one row after the other; room for kFiredRoom more
  std::int64_t* row_end;  // [height] number of fired cells up to and including the row
  std::int64_t count;
};

// The draw of a slice: its key, and the coordinates of its first cell in the whole level.
struct Draw {
  std::uint32_t key;
  std::uint64_t threshold;
  std::uint32_t z, y, x;
};

// A slice and its two neighbours, mirrored at the ends of the level.
template <class S>
struct Slice {
  const S* planes[3];
  std::int64_t height;  // 1 in 2-D
  std::int64_t width;
};

// Updates of a slice's fired cells that are not yet part of the state.
template <class T>
struct Pending {
  std::int64_t count;
  std::uint32_t* cells;  // index in the slice
  T* updates;            // [count][padded_channels], room for kChunk more
};

// A thread's scratch memory.
template <class T>
struct Scratch {
  std::uint8_t* flags;  // [width]
  Fired fired;
  T* inputs;     // [kChunk][padded_channels + channels, padded]: state | perceived
  T* hidden;     // [kChunk][padded_hidden]
  T* grad_out;   // [kChunk][padded_channels]
  T* grad_hidden;  // [kChunk][padded_hidden]
  T* grad_inputs;  // [kChunk][padded_doubled + padded_channels]
};

// Sums over cells, one set a thread.
template <class T>
struct Gradients {
  T* perceive;           // [taps][padded_channels]
  T* hidden;             // [2 C][padded_hidden]
  T* hidden_bias;        // [padded_hidden]
  T* update_transposed;  // [C - n_in][padded_hidden]
};

// What is done to a slice. T is computed in, S is stored.
template <class T, class S>
struct Operations {
  int lanes;  // of T

  // Draws how many cells fire, and which. `flags` is scratch, [width].
  std::int64_t (*count)(const Draw& draw, std::int64_t height, std::int64_t width,
                        std::uint8_t* flags);
  void (*draw)(const Draw& draw, std::int64_t height, std::int64_t width, std::uint8_t* flags,
               Fired& fired);

  // Perceive and update: fills `pending` with the updates of scratch.fired.
  void (*forward)(const Slice<S>& slice, const Weights<T>& weights, Scratch<T>& scratch,
                  Pending<T>& pending);
  // The same with products of bfloat16, summed in float.
  void (*forward_bf16)(const Slice<S>& slice, const Weights<T>& weights, Scratch<T>& scratch,
                       Pending<T>& pending);

  // Adds the updates to the slice. If `log` is given, the old values of the channels that change
  // are written to it, [count][C - n_in].
  void (*commit)(const Sizes& sizes, const Pending<T>& pending, S* slice, T* log);

  // Cells of a state that have a channel which is NaN or infinite.
  std::int64_t (*non_finite)(const Sizes& sizes, std::int64_t cells, const S* state);

  // What the children of `cells` parents, `stride` numbers apart, take of them:
  // [cells][padded children], the image's channels 0.
  void (*hand_down)(const LevelMap<T>& map, std::int64_t cells, const S* parents,
                    std::int64_t stride, T* scratch, S* to);

  // ---- backward; only where T and S are the same ----

  // Puts the log's values back into the fired cells' changing channels: undoes a step.
  void (*undo)(const Sizes& sizes, const Fired& fired, std::int64_t height, std::int64_t width,
               S* slice, const T* log);
  // Exchanges them: undoes a step so that it can be done again in the same way.
  void (*swap)(const Sizes& sizes, const Fired& fired, std::int64_t height, std::int64_t width,
               S* slice, T* log);
  // Copies the fired cells' gradients, [count][padded_channels].
  void (*gather)(const Sizes& sizes, const Fired& fired, std::int64_t height, std::int64_t width,
                 const T* gradient, T* gathered);
  // From the gradient of what was handed down, [cells][C of the children - n_in], that of the parents;
  // adds to the map's, [C of the children - n_in][padded parents]. Parents are [cells][C] here.
  void (*hand_down_backward)(const LevelMap<T>& map, std::int64_t cells, const T* parents,
                             const T* gradient, T* scratch, T* to, T* sums);
  // Adds to the weights' gradients, and to the gradient of the three slices of the step's input.
  void (*backward)(const Slice<S>& slice, const Weights<T>& weights, Scratch<T>& scratch,
                   const Fired& fired, const T* gathered, T* const gradient[3],
                   Gradients<T>& gradients);
};

// One instruction set.
struct KernelSet {
  const char* name;
  bool native_bf16;  // the processor multiplies bfloat16 itself
  Operations<float, float> single;
  Operations<float, Half> half;
  const Operations<double, double>* float64;  // where compiled for it: the plain kernels
  // Multiplies and adds in registers; returns the number of floating point operations.
  double (*burn)(std::int64_t iterations, float* sink);
};

// The kernels this machine runs, the fastest first; the last are the plain ones.
int available_kernels(const KernelSet** sets, int room);
// By name, or null where this build or this processor lacks them.
const KernelSet* find_kernels(const char* name);

}  // namespace octreenca
