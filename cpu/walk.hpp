// An octree walked step by step, all cells of a level in memory: for those who want to watch.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "level_input.hpp"
#include "pyramid.hpp"
#include "schedule.hpp"
#include "stepper.hpp"

namespace octreenca {

class Walk {
 public:
  // The image and the weights must outlive the walk; it begins on the coarsest level.
  Walk(const Image& image, const Shape& shape, const std::vector<OctreeLevel>& levels,
       std::uint64_t seed, std::uint64_t threshold, const Options& options)
      : levels_(levels),
        shapes_(shapes_of(shape, levels_)),
        seed_(seed),
        threshold_(threshold),
        options_(options),
        pyramid_([image, width = shape.width](std::int64_t z, std::int64_t y, float* to) {
          interleave(image, z, y, width, to);
        }, image.channels, shapes_, levels_),
        level_(levels.size()) {
    pyramid_.store(1, 1);
    descend();
  }

  std::size_t level() const { return level_; }
  int step() const { return step_; }
  const Shape& shape() const { return shapes_[level_]; }

  // One step, or the way to the next finer level where all steps are done; false at the end.
  bool advance() {
    if (step_ < steps()) {
      compute();
      ++step_;
      return true;
    }
    if (level_ == 0) return false;
    descend();
    return true;
  }

  // A channel of the state: [depth][height][width].
  void channel(int index, float* to) const {
    const int stride = weights_->sizes().padded_channels;
    for (std::int64_t i = 0; i < shape().cells(); ++i) to[i] = state_[i * stride + index];
  }

 private:
  int steps() const { return threshold_ == 0 ? 0 : levels_[level_].steps; }

  void descend() {
    --level_;
    step_ = 0;
    const Shape& here = shape();
    const OctreeLevel& network = levels_[level_];
    const int lanes = operations_of<float, float>(*options_.kernels).lanes;
    const int parent_stride = weights_ ? weights_->sizes().padded_channels : 0;
    weights_ = std::make_unique<PackedWeights<float>>(network.weights, lanes);
    const Sizes& sizes = weights_->sizes();
    const int stride = sizes.padded_channels;
    const Buffer<float> state = std::move(state_);
    const auto map = map_to(levels_, level_, lanes);
    Parents<float> parents;
    if (level_ + 1 < shapes_.size()) {
      const Shape& above = shapes_[level_ + 1];
      const auto row = [&, parent_stride](std::int64_t z, std::int64_t y) {
        return state.get() + (z * above.height + y) * above.width * parent_stride;
      };
      parents = {row, above.width, parent_stride, map.get()};
    }
    const LevelInput<float> enter(pyramid_, level_, here, network.factor, std::move(parents),
                                  sizes.inputs, stride, *options_.kernels, 1);
    state_ = Buffer<float>(here.cells() * stride);
    for (std::int64_t slice = 0; slice < here.slices(); ++slice) {
      enter(0, slice, at(slice));
    }
    stepper_ = std::make_unique<Stepper<float, float>>(
        *weights_, here, steps(), Seed{seed_, static_cast<std::uint32_t>(level_), threshold_},
        Origin{0, 0, 0}, 0, nullptr, 1, options_);
    workspace_ = std::make_unique<Workspace<float>>(sizes, here);
    pendings_ = make_pendings<float>(3, sizes, here);
  }

  void compute() {
    const std::int64_t slices = shape().slices();
    const auto pending = [&](int slot) -> Pending<float>& {
      return pendings_[static_cast<std::size_t>(slot)]->view;
    };
    sweep(
        1, slices, 1,
        [&](int, int, std::int64_t slice, int slot) {
          stepper_->compute(*workspace_, step_, slice, at(mirrored_slice(slice - 1, 0, slices)),
                            at(slice), at(mirrored_slice(slice + 1, 0, slices)), pending(slot));
        },
        [&](int, int, std::int64_t slice, int slot) {
          stepper_->commit(step_, slice, pending(slot), at(slice));
        });
  }

  float* at(std::int64_t slice) const {
    return state_.get() + slice * shape().slice_cells() * weights_->sizes().padded_channels;
  }

  const std::vector<OctreeLevel> levels_;
  const std::vector<Shape> shapes_;
  const std::uint64_t seed_, threshold_;
  const Options options_;
  Pyramid pyramid_;
  std::size_t level_;
  int step_ = 0;
  Buffer<float> state_;
  std::unique_ptr<PackedWeights<float>> weights_;
  std::unique_ptr<Stepper<float, float>> stepper_;
  std::unique_ptr<Workspace<float>> workspace_;
  Pendings<float> pendings_;
};

}  // namespace octreenca
