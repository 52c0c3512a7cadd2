// n steps of one level, forward and backward.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "level.hpp"
#include "types.hpp"

namespace octreenca {

enum class Schedule { kAuto, kSweep, kWavefront };

struct Options {
  const KernelSet* kernels;
  int threads = 1;
  Schedule schedule = Schedule::kAuto;
  bool bf16 = false;  // products of bfloat16, summed in float
  bool count_non_finite = true;  // of whole octrees; training looks at its loss and gradients
};

// Cells of a level whose state is NaN or infinite, and how many were looked at.
struct NonFinite {
  std::int64_t cells, of;
};

// Threads worth starting for `cells` * `steps` cell-steps.
int useful_threads(int threads, std::int64_t cells, int steps);

// Samples of a batch that a single thread computes each, side by side: threads that share a sample
// wait for one another in every step. The rest of the batch, too few for all threads, is shared.
std::int64_t samples_alone(int threads, int batch, std::int64_t cells, int steps);

// Which slices a wavefront leaves in place, and how far it looks to both sides for that.
struct Band {
  std::int64_t first, end;            // slices computed
  std::int64_t drain_first, drain_end;  // slices that are right at the end
};

// Slices a thread does before it looks for other work: some 20 us.
std::int64_t wavefront_batch(const Shape& shape);

// Slots of a wavefront's ring: enough for every step to trail the one before.
std::int64_t ring_slots(const Shape& shape, int steps);

// Runs the steps of one sample, a wavefront through every band.
//
//   slot(band, slice)          where a slice's state is kept
//   feed(thread, slice, to)    fills a slice
//   drain(thread, slice, from) uses a slice that has all its steps; its slot is then filled anew
template <class T, class S>
struct WavefrontWork {
  std::vector<Band> bands;
  std::int64_t ring;
  std::function<S*(std::size_t, std::int64_t)> slot;
  std::function<void(int, std::int64_t, S*)> feed;
  std::function<void(int, std::int64_t, const S*)> drain;
};
template <class T, class S>
void run_wavefront(const PackedWeights<T>& weights, const Shape& shape,
                   const WavefrontWork<T, S>& work, int steps, const Seed& seed,
                   const Origin& origin, std::uint32_t sample, T* log, int threads,
                   const Options& options);

// Runs the steps of one sample in place, and counts the cells that are not finite at their end if
// the options say so.
//
//   state   [cells][padded channels]
//   log     room for steps * cells * (C - n_in) numbers, or null. Receives the old values of the
//           cells that fire, step by step, slice by slice, without gaps: its end is not touched.
template <class T, class S>
NonFinite run_steps(const PackedWeights<T>& weights, const Shape& shape, S* state, int steps,
                    const Seed& seed, const Origin& origin, std::uint32_t sample, T* log,
                    const Options& options);

// All samples of a batch, channels tight (C). `log` as above, one sample behind the other.
// Image channels stay as they are.
template <class T>
void steps_forward(const RawWeights<T>& raw, const Shape& shape, int batch, T* state, int steps,
                   const Seed& seed, const std::vector<Origin>& origins, T* log,
                   const Options& options);

// The gradient of `steps_forward`.
//
//   state     what the steps led to; they are undone in it
//   log       what the steps wrote
//   restore   do the steps again at the end, so that state and log are as they were; else the state
//             is scratch memory from then on
//   gradient  of the state after the steps; becomes that of the state before
// The weights' gradients are added to. The same number of threads gives the same bits.
template <class T>
struct WeightGradients {
  T *perceive, *perceive_bias, *hidden_weight, *hidden_bias, *update;
};
template <class T>
void steps_backward(const RawWeights<T>& raw, const Shape& shape, int batch, T* state, T* log,
                    bool restore, T* gradient, int steps, const Seed& seed, const std::vector<Origin>& origins,
                    const WeightGradients<T>& gradients, const Options& options);

}  // namespace octreenca
