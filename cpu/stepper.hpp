// One step of a slice, whatever the order of the slices.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "steps.hpp"

namespace octreenca {

template <class T>
using Pendings = std::vector<std::unique_ptr<PendingUpdates<T>>>;

template <class T>
Pendings<T> make_pendings(std::size_t count, const Sizes& sizes, const Shape& shape) {
  Pendings<T> pendings;
  for (std::size_t i = 0; i < count; ++i) {
    pendings.push_back(std::make_unique<PendingUpdates<T>>(sizes, shape));
  }
  return pendings;
}

template <class T, class S>
class Stepper {
 public:
  Stepper(const PackedWeights<T>& weights, const Shape& shape, int steps, const Seed& seed,
          const Origin& origin, std::uint32_t sample, T* log, int threads, const Options& options)
      : weights_(weights),
        shape_(shape),
        seed_(seed),
        origin_(origin),
        log_(log),
        bf16_(options.bf16),
        operations_(operations_of<T, S>(*options.kernels)) {
    for (int step = 0; step < steps; ++step) {
      keys_.push_back(draw_key(seed.seed, seed.level, static_cast<std::uint32_t>(step), sample));
    }
    if (log) before_ = fired_before(shape, seed, origin, sample, steps, threads, *options.kernels);
  }

  void compute(Workspace<T>& workspace, int step, std::int64_t slice, const S* above, const S* here,
               const S* below, Pending<T>& pending) const {
    const Draw draw =
        slice_draw(shape_, seed_, origin_, keys_[static_cast<std::size_t>(step)], slice);
    const Slice<S> planes = {{above, here, below}, shape_.slice_height(), shape_.width};
    Scratch<T>& scratch = workspace.scratch;
    operations_.draw(draw, planes.height, planes.width, scratch.flags, scratch.fired);
    (bf16_ ? operations_.forward_bf16 : operations_.forward)(planes, weights_.view(), scratch,
                                                             pending);
  }

  void commit(int step, std::int64_t slice, const Pending<T>& pending, S* here) const {
    T* old = nullptr;
    if (log_) {
      const auto index = static_cast<std::size_t>(step * shape_.slices() + slice);
      old = log_ + before_[index] * weights_.sizes().outputs();
    }
    operations_.commit(weights_.sizes(), pending, here, old);
  }

 private:
  const PackedWeights<T>& weights_;
  const Shape shape_;
  const Seed seed_;
  const Origin origin_;
  T* const log_;
  const bool bf16_;
  const Operations<T, S>& operations_;
  std::vector<std::uint32_t> keys_;
  std::vector<std::int64_t> before_;
};

}  // namespace octreenca
