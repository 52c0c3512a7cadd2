#include "stream.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "finite.hpp"
#include "level_input.hpp"
#include "pyramid.hpp"
#include "schedule.hpp"
#include "stepper.hpp"
#include "threads.hpp"

namespace octreenca {

namespace {

// The first spatial axis, along which bands follow one another.
int first_axis(const Shape& shape) { return shape.dimension == 2 ? 1 : 0; }

Shape with_slices(Shape shape, std::int64_t slices) {
  (shape.dimension == 2 ? shape.height : shape.depth) = slices;
  return shape;
}

// Slices of the image between what has come in and what the finest level has used. Their memory comes
// in blocks and stays where it is: a single one would be copied as it grows, and leave holes that
// WebAssembly never returns.
class ImageRing {
 public:
  ImageRing(const Shape& shape, int channels) : shape_(shape), channels_(channels) {}

  void begin(std::int64_t slice) { held_ = {slice, slice}; }
  std::int64_t end() const { return held_.end; }

  // [width][channels] of row y of plane z
  const float* row(std::int64_t z, std::int64_t y) const {
    const std::int64_t slice = shape_.dimension == 2 ? y : z, line = shape_.dimension == 2 ? 0 : y;
    return at(slice) + line * shape_.width * channels_;
  }

  // Forgets what lies before `keep` and takes a band.
  void push(const Image& band, Range slices, std::int64_t keep, int threads) {
    held_.first = std::max(held_.first, keep);
    const auto slots = static_cast<std::size_t>(slices.end - held_.first);
    if (slots > slots_.size()) grow(slots);
    const std::int64_t lines = shape_.slice_height();
    for_each(threads, slices.size() * lines, [&](std::int64_t index) {
      const std::int64_t slice = index / lines, line = index % lines;
      const std::int64_t z = shape_.dimension == 2 ? 0 : slice;
      const std::int64_t y = shape_.dimension == 2 ? slice : line;
      interleave(band, z, y, shape_.width,
                 at(slices.first + slice) + line * shape_.width * channels_);
    });
    held_.end = slices.end;
  }

 private:
  // A little less than 1 MiB: WebAssembly's allocator rounds up to powers of two.
  static constexpr std::int64_t kBlock = ((1 << 20) - 256) / sizeof(float);

  std::int64_t slice_size() const { return shape_.slice_cells() * channels_; }
  std::size_t slot(std::int64_t slice) const {
    return static_cast<std::size_t>(slice) % slots_.size();
  }
  float* at(std::int64_t slice) const { return slots_[slot(slice)]; }

  void grow(std::size_t count) {
    std::vector<float*> slots(count, nullptr);
    for (std::int64_t slice = held_.first; slice < held_.end; ++slice) {
      std::swap(slots[static_cast<std::size_t>(slice) % count], slots_[slot(slice)]);
    }
    for (float* left : slots_) {
      if (left != nullptr) spare_.push_back(left);
    }
    for (float*& one : slots) {
      if (one == nullptr) one = spare();
    }
    slots_ = std::move(slots);
  }

  float* spare() {
    if (spare_.empty()) {
      const std::int64_t slices = std::max<std::int64_t>(kBlock / slice_size(), 1);
      blocks_.emplace_back(slices * slice_size());
      for (std::int64_t i = 0; i < slices; ++i) {
        spare_.push_back(blocks_.back().get() + i * slice_size());
      }
    }
    float* const slice = spare_.back();
    spare_.pop_back();
    return slice;
  }

  const Shape shape_;
  const int channels_;
  Range held_{0, 0};
  std::vector<Buffer<float>> blocks_;
  std::vector<float*> slots_, spare_;
};

// How far a level gets.
struct Reach {
  std::int64_t fed, finished;
};

template <class S>
class Stream final : public OctreeStream {
 public:
  Stream(const Shape& shape, const std::vector<OctreeLevel>& levels, std::uint64_t seed,
         std::uint64_t threshold, std::uint32_t sample, const Options& options)
      : levels_(levels),
        shapes_(shapes_of(shape, levels_)),
        seed_(seed),
        threshold_(threshold),
        sample_(sample),
        options_(options),
        inputs_(levels_[0].weights.inputs),
        image_(shape, inputs_),
        coarsest_(levels_.size() - 1),
        pyramid_([this](std::int64_t z, std::int64_t y, float* to) {
          std::copy_n(image_.row(z, y), shapes_[0].width * inputs_, to);
        }, inputs_, shapes_, levels_) {
    const int lanes = operations_of<float, S>(*options.kernels).lanes;
    std::int64_t span = 1;
    for (auto& level : levels_) {
      weights_.push_back(std::make_unique<PackedWeights<float>>(level.weights, lanes));
      if (threshold == 0) level.steps = 0;
      spans_.push_back(span);
      span *= level.factor[first_axis(shape)];
      wrong_.push_back(std::make_unique<NonFiniteCells<float, S>>(
          operations_of<float, S>(*options.kernels), weights_.back()->sizes(),
          shapes_[wrong_.size()]));
    }
    for (std::size_t level = 0; level < levels_.size(); ++level) {
      maps_.push_back(map_to(levels_, level, lanes));
    }
    if (coarsest_ > 0) coarse_image_ = Buffer<float>(shapes_[coarsest_].cells() * inputs_);
  }

  std::int64_t factor() const override { return spans_[coarsest_]; }

  void pool(const Image& band, Range slices) override {
    if (coarsest_ == 0) return;
    const Shape& coarse = shapes_[coarsest_];
    const Pyramid pyramid([&](std::int64_t z, std::int64_t y, float* to) {
      const bool flat = coarse.dimension == 2;
      interleave(band, flat ? z : z - slices.first, flat ? y - slices.first : y, shapes_[0].width,
                 to);
    }, inputs_, shapes_, levels_);
    const std::int64_t lines = coarse.slice_height();
    const std::int64_t first = slices.first / factor() * lines;
    const std::int64_t end = (slices.end + factor() - 1) / factor() * lines;
    for_each(options_.threads, end - first, [&](std::int64_t index) {
      const Buffer<float> scratch(pyramid.scratch_size());
      const std::int64_t row = first + index;
      pyramid.row(coarsest_, row / coarse.height, row % coarse.height,
                  coarse_image_.get() + row * coarse.width * inputs_, scratch.get());
    });
  }

  void prepare() override {
    if (coarsest_ == 0) return;
    const Shape& shape = shapes_[coarsest_];
    const int stride = stride_of(coarsest_);
    const std::int64_t size = shape.slice_cells() * stride;
    coarse_ = Buffer<S>(shape.slices() * size);
    for_each(options_.threads, shape.slices(), [&](std::int64_t slice) {
      S* to = coarse_.get() + slice * size;
      const float* from = coarse_image_.get() + slice * shape.slice_cells() * inputs_;
      std::fill_n(to, size, S{});
      for (std::int64_t cell = 0; cell < shape.slice_cells(); ++cell) {
        for (int c = 0; c < inputs_; ++c) put(to + cell * stride + c, from[cell * inputs_ + c]);
      }
    });
    coarse_image_.release();
    coarse_wrong_ =
        run_steps<float, S>(*weights_[coarsest_], shape, coarse_.get(), levels_[coarsest_].steps,
                            draws(coarsest_), {0, 0, 0}, sample_, nullptr, options_);
  }

  std::vector<NonFinite> non_finite() const override {
    std::vector<NonFinite> result;
    for (const auto& level : wrong_) result.push_back({level->found(), level->checked()});
    if (coarsest_ > 0) result[coarsest_] = coarse_wrong_;
    return result;
  }

  void begin(Range wanted) override {
    wavefronts_.clear();
    wanted_ = wanted;
    const std::size_t count = std::max<std::size_t>(coarsest_, 1);
    Range needed = wanted;
    for (std::size_t level = 0; level < count; ++level) {
      wavefronts_.push_back(std::make_unique<Wavefront>(*this, level, needed));
      const std::int64_t f = levels_[level].factor[first_axis(shapes_[0])];
      const Range& computed = wavefronts_.back()->slices;
      needed = {computed.first / f, (computed.end - 1) / f + 1};
    }
    image_.begin(image_range().first);
  }

  Range image_range() const override {
    Range image = wavefronts_[0]->slices;
    for (const auto& wavefront : wavefronts_) {
      image.first = std::min(image.first, wavefront->slices.first * spans_[wavefront->level]);
      image.end = std::max(image.end, wavefront->slices.end * spans_[wavefront->level]);
    }
    image.end = std::min(image.end, shapes_[0].slices());
    return image;
  }

  std::int64_t ready(std::int64_t image_end) const override {
    const std::int64_t done = wavefronts_[0]->slices.first + reaches(image_end)[0].finished;
    return std::clamp(done, wanted_.first, wanted_.end);
  }

  void advance(const Image& band, Range slices, const Output& output) override {
    const std::int64_t before = ready(image_.end()), after = ready(slices.end);
    image_.push(band, slices, image_needed(), options_.threads);
    const std::vector<Reach> goals = reaches(slices.end);
    const Shape part = with_slices(shapes_[0], after - before);
    const auto drain = [&](std::int64_t slice, const S* from) {
      if (slice >= wanted_.first && slice < wanted_.end) {
        write(output, part, slice - before, from, inputs_, stride_of(0));
      }
    };
    Team::run(options_.threads, [&](int thread, Team&) {
      Backoff backoff;
      while (!all_reached(goals)) {
        bool worked = false;
        for (std::size_t level = 0; level < wavefronts_.size() && !worked; ++level) {
          worked = turn(thread, level, goals[level].fed, drain);
        }
        if (worked) {
          backoff = Backoff();
        } else {
          backoff.wait();
        }
      }
    });
  }

 private:
  // One level's slices on their way through its steps.
  struct Wavefront {
    Wavefront(Stream& stream, std::size_t number, const Range& wanted_slices)
        : level(number),
          wanted(wanted_slices),
          shape(stream.shapes_[number]),
          steps(stream.levels_[number].steps),
          // What is not the image's border is wrong as many slices deep as there are steps.
          slices{std::max<std::int64_t>(wanted.first - steps, 0),
                std::min(wanted.end + steps, shape.slices())},
          slots(std::min(ring_slots(shape, steps), slices.size())),
          slice_stride(shape.slice_cells() * stream.stride_of(number)),
          memory(slots * slice_stride),
          progress(slices.size(), steps, slots, wavefront_batch(shape)),
          stepper(*stream.weights_[number], shape, steps, stream.draws(number), Origin{0, 0, 0},
                  stream.sample_, nullptr, 1, stream.options_),
          workspaces(make_workspaces<float>(stream.options_.threads,
                                            stream.weights_[number]->sizes(), shape)),
          pendings(make_pendings<float>(static_cast<std::size_t>(steps) * 2,
                                        stream.weights_[number]->sizes(), shape)),
          enter(stream.pyramid_, number, shape, stream.levels_[number].factor,
                stream.parents_of(number), stream.inputs_, stream.stride_of(number),
                *stream.options_.kernels, stream.options_.threads) {}

    S* slot(std::int64_t slice) const { return memory.get() + slice % slots * slice_stride; }

    const std::size_t level;
    const Range wanted;  // by the next finer level; of these nothing is wrong
    const Shape shape;
    const int steps;
    const Range slices;
    const std::int64_t slots, slice_stride;
    const Buffer<S> memory;
    Progress progress;
    const Stepper<float, S> stepper;
    const Workspaces<float> workspaces;
    const Pendings<float> pendings;
    const LevelInput<S> enter;
  };

  Seed draws(std::size_t level) const {
    return {seed_, static_cast<std::uint32_t>(level), threshold_};
  }

  // Numbers from one cell of a level to the next.
  int stride_of(std::size_t level) const { return weights_[level]->sizes().padded_channels; }

  Parents<S> parents_of(std::size_t level) const {
    if (coarsest_ == 0) return {};
    const Shape& above = shapes_[level + 1];
    Parents<S> parents{{}, above.width, stride_of(level + 1), maps_[level].get()};
    const std::int64_t row_stride = above.width * parents.stride;
    if (level + 1 == coarsest_) {
      parents.row = [this, &above, row_stride](std::int64_t z, std::int64_t y) {
        return coarse_.get() + (z * above.height + y) * row_stride;
      };
    } else {
      parents.row = [this, level, row_stride](std::int64_t z, std::int64_t y) {
        const bool flat = shapes_[0].dimension == 2;
        return wavefronts_[level + 1]->slot(flat ? y : z) + (flat ? 0 : y) * row_stride;
      };
    }
    return parents;
  }

  // The first slice of the image that some level has still to be fed from.
  std::int64_t image_needed() const {
    std::int64_t first = image_.end();
    for (const auto& wavefront : wavefronts_) {
      const std::int64_t fed = wavefront->progress.fed();
      if (fed < wavefront->slices.size()) {
        first = std::min(first, (wavefront->slices.first + fed) * spans_[wavefront->level]);
      }
    }
    return first;
  }

  // What all levels can get to with the image's slices below `image_end`; coarse to fine, for a
  // slice waits for its parents.
  std::vector<Reach> reaches(std::int64_t image_end) const {
    std::vector<Reach> reaches(wavefronts_.size());
    for (std::size_t level = wavefronts_.size(); level-- > 0;) {
      const Wavefront& wavefront = *wavefronts_[level];
      const std::int64_t count = wavefront.slices.size();
      const auto within = [&](std::int64_t end) {
        return std::clamp<std::int64_t>(end - wavefront.slices.first, 0, count);
      };
      const bool whole = image_end >= shapes_[0].slices();
      std::int64_t fed = whole ? count : within(image_end / spans_[level]);
      if (level + 1 < wavefronts_.size()) {
        const Wavefront& above = *wavefronts_[level + 1];
        const std::int64_t parents = reaches[level + 1].finished;
        if (parents < above.slices.size()) {
          const std::int64_t f = levels_[level].factor[first_axis(shapes_[0])];
          fed = std::min(fed, within((above.slices.first + parents) * f));
        }
      }
      // Every step trails the one before by two slices.
      const std::int64_t trail = 2 * wavefront.steps;
      reaches[level] = {fed, fed == count ? count : std::max<std::int64_t>(fed - trail, 0)};
    }
    return reaches;
  }

  bool all_reached(const std::vector<Reach>& goals) const {
    for (const auto& wavefront : wavefronts_) {
      const Reach& goal = goals[wavefront->level];
      const Progress& progress = wavefront->progress;
      if (progress.fed() < goal.fed || progress.finished() < goal.finished) return false;
    }
    return true;
  }

  // Slices of a level that the next finer one has no more children to feed from.
  std::int64_t used(std::size_t level) const {
    const Wavefront& wavefront = *wavefronts_[level];
    const std::int64_t finished = wavefront.progress.finished();
    if (level == 0) return finished;
    const Wavefront& below = *wavefronts_[level - 1];
    const std::int64_t fed = below.progress.fed();
    if (fed == below.slices.size()) return finished;
    const std::int64_t f = levels_[level - 1].factor[first_axis(shapes_[0])];
    return std::min(finished, (below.slices.first + fed) / f - wavefront.slices.first);
  }

  bool parents_finished(std::size_t level, std::int64_t slice) const {
    if (level + 1 >= wavefronts_.size()) return true;
    const Wavefront& above = *wavefronts_[level + 1];
    const std::int64_t f = levels_[level].factor[first_axis(shapes_[0])];
    return slice / f < above.slices.first + above.progress.finished();
  }

  template <class Drain>
  bool turn(int thread, std::size_t level, std::int64_t most, const Drain& drain) {
    Wavefront& wavefront = *wavefronts_[level];
    const Range& slices = wavefront.slices;
    const auto pending = [&](int step, int slot) -> Pending<float>& {
      return wavefront.pendings[static_cast<std::size_t>(step * 2 + slot)]->view;
    };
    return wavefront_turn(
        thread, wavefront.progress,
        [&](std::int64_t offset) {
          return offset < most && offset < used(level) + wavefront.slots &&
                 parents_finished(level, slices.first + offset);
        },
        [&](int index, std::int64_t offset) {
          wavefront.enter(index, slices.first + offset, wavefront.slot(slices.first + offset));
        },
        [&](int index, int step, std::int64_t offset, int slot) {
          const std::int64_t slice = slices.first + offset;
          wavefront.stepper.compute(
              *wavefront.workspaces[static_cast<std::size_t>(index)], step, slice,
              wavefront.slot(mirrored_slice(slice - 1, slices.first, slices.end)),
              wavefront.slot(slice),
              wavefront.slot(mirrored_slice(slice + 1, slices.first, slices.end)),
              pending(step, slot));
        },
        [&](int, int step, std::int64_t offset, int slot) {
          const std::int64_t slice = slices.first + offset;
          wavefront.stepper.commit(step, slice, pending(step, slot), wavefront.slot(slice));
        },
        [&](int, std::int64_t offset) {
          const std::int64_t slice = slices.first + offset;
          const S* done = wavefront.slot(slice);
          if (level == 0) drain(slice, done);
          const bool right = slice >= wavefront.wanted.first && slice < wavefront.wanted.end;
          if (right && options_.count_non_finite) wrong_[level]->add(done);
        });
  }

  std::vector<OctreeLevel> levels_;
  const std::vector<Shape> shapes_;
  const std::uint64_t seed_, threshold_;
  const std::uint32_t sample_;
  const Options options_;
  const int inputs_;
  ImageRing image_;
  const std::size_t coarsest_;
  const Pyramid pyramid_;
  std::vector<std::unique_ptr<PackedWeights<float>>> weights_;
  std::vector<std::unique_ptr<PackedMap<float>>> maps_;  // from every level's parents
  std::vector<std::int64_t> spans_;  // slices of the image that a slice of a level covers
  Buffer<float> coarse_image_;
  Buffer<S> coarse_;
  Range wanted_{0, 0};
  std::vector<std::unique_ptr<Wavefront>> wavefronts_;
  std::vector<std::unique_ptr<NonFiniteCells<float, S>>> wrong_;
  NonFinite coarse_wrong_{0, 0};
};

}  // namespace

std::unique_ptr<OctreeStream> make_octree_stream(const Shape& shape,
                                                 const std::vector<OctreeLevel>& levels,
                                                 std::uint64_t seed, std::uint64_t threshold,
                                                 std::uint32_t sample, const Options& options,
                                                 bool half) {
  if (half) return std::make_unique<Stream<Half>>(shape, levels, seed, threshold, sample, options);
  return std::make_unique<Stream<float>>(shape, levels, seed, threshold, sample, options);
}

}  // namespace octreenca
