#include "octree.hpp"

#include <algorithm>

#include "half.hpp"
#include "threads.hpp"

namespace octreenca {

namespace {

inline void put(float* to, float value) { *to = value; }
inline void put(Half* to, float value) { to->bits = float_to_half(value); }
inline float get(const float* from) { return *from; }
inline float get(const Half* from) { return half_to_float(from->bits); }

Shape coarser(const Shape& shape, const int factor[3]) {
  const auto ceil_of = [](std::int64_t n, int f) { return (n + f - 1) / f; };
  return {shape.dimension, ceil_of(shape.depth, factor[0]), ceil_of(shape.height, factor[1]),
          ceil_of(shape.width, factor[2])};
}

// The image of every level, row by row. Level 1 is computed when it is asked for: it would be
// the largest of all.
class Pyramid {
 public:
  Pyramid(const Image& image, const std::vector<Shape>& shapes,
          const std::vector<OctreeLevel>& levels, int threads)
      : image_(image), shapes_(shapes), levels_(levels), stored_(shapes.size()) {
    for (std::size_t level = 2; level < shapes.size(); ++level) {
      const Shape& shape = shapes[level];
      stored_[level] = Buffer<float>(shape.cells() * image.channels);
      for_each(threads, shape.depth * shape.height, [&](std::int64_t row) {
        const Buffer<float> scratch(scratch_size());
        pooled_row(level, row / shape.height, row % shape.height,
                   stored_[level].get() + row * shape.width * image.channels, scratch.get());
      });
    }
  }

  std::int64_t scratch_size() const { return 2 * shapes_[0].width * image_.channels; }

  // [width][channels]
  void row(std::size_t level, std::int64_t z, std::int64_t y, float* to, float* scratch) const {
    const std::int64_t width = shapes_[level].width;
    if (level == 0) {
      const float* from = image_.data + z * image_.z_stride + y * image_.y_stride;
      for (int c = 0; c < image_.channels; ++c) {
        const float* channel = from + c * image_.channel_stride;
        for (std::int64_t x = 0; x < width; ++x) {
          to[x * image_.channels + c] = channel[x * image_.x_stride];
        }
      }
    } else if (stored_[level].get() != nullptr) {
      const std::int64_t count = width * image_.channels;
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
    const int n = image_.channels;
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

  const Image& image_;
  const std::vector<Shape>& shapes_;
  const std::vector<OctreeLevel>& levels_;
  std::vector<Buffer<float>> stored_;
};

// Fills a unit of a level: its image beside its parents' other channels (zeros on the coarsest).
template <class S>
class Entrance {
 public:
  Entrance(const Pyramid& pyramid, std::size_t level, const Shape& shape, const int* factor,
           const Shape& parent_shape, const S* parent, int inputs, int stride, int threads)
      : pyramid_(pyramid),
        level_(level),
        shape_(shape),
        factor_(factor),
        parent_shape_(parent_shape),
        parent_(parent),
        inputs_(inputs),
        stride_(stride) {
    for (int i = 0; i < threads; ++i) {
      rows_.emplace_back(shape.width * inputs + pyramid.scratch_size());
    }
  }

  void operator()(int thread, std::int64_t unit, S* to) const {
    float* pixels = rows_[static_cast<std::size_t>(thread)].get();
    float* scratch = pixels + shape_.width * inputs_;
    for (std::int64_t row = 0; row < shape_.unit_height(); ++row) {
      const std::int64_t z = shape_.dimension == 2 ? 0 : unit;
      const std::int64_t y = shape_.dimension == 2 ? unit : row;
      pyramid_.row(level_, z, y, pixels, scratch);
      const S* parents = nullptr;
      if (parent_ != nullptr) {
        const std::int64_t parent_row = z / factor_[0] * parent_shape_.height + y / factor_[1];
        parents = parent_ + parent_row * parent_shape_.width * stride_;
      }
      for (std::int64_t x = 0; x < shape_.width; ++x, to += stride_) {
        if (parents != nullptr) {
          std::copy_n(parents + x / factor_[2] * stride_, stride_, to);
        } else {
          std::fill_n(to, stride_, S{});
        }
        for (int c = 0; c < inputs_; ++c) put(to + c, pixels[x * inputs_ + c]);
      }
    }
  }

 private:
  const Pyramid& pyramid_;
  const std::size_t level_;
  const Shape shape_;
  const int* factor_;
  const Shape parent_shape_;
  const S* parent_;
  const int inputs_, stride_;
  std::vector<Buffer<float>> rows_;
};

// Writes a unit of the finest level.
template <class S>
void write(const Output& output, const Shape& shape, std::int64_t unit, const S* state, int inputs,
           int stride) {
  const std::int64_t first = unit * shape.unit_cells(), cells = shape.unit_cells();
  const int K = output.logits;
  if (output.values != nullptr) {
    float* to = output.values + first;
    if (output.background) {
      std::fill_n(to, cells, 0.0f);
      to += shape.cells();
    }
    for (int k = 0; k < K; ++k, to += shape.cells()) {
      for (std::int64_t i = 0; i < cells; ++i) to[i] = get(state + i * stride + inputs + k);
    }
    return;
  }
  for (std::int64_t i = 0; i < cells; ++i) {
    const S* logits = state + i * stride + inputs;
    int label = 0;
    float best = output.background ? 0.0f : get(logits);
    for (int k = output.background ? 0 : 1; k < K; ++k) {
      const float value = get(logits + k);
      if (value > best) {
        best = value;
        label = k + output.background;
      }
    }
    if (output.label_bytes == 1) {
      static_cast<std::uint8_t*>(output.labels)[first + i] = static_cast<std::uint8_t>(label);
    } else {
      static_cast<std::int16_t*>(output.labels)[first + i] = static_cast<std::int16_t>(label);
    }
  }
}

// How many waves run side by side: more than one only where there are more threads than steps,
// for a further wave computes `steps` units twice at each of its ends.
std::vector<Band> bands_for(std::int64_t units, int steps, int threads) {
  int best = 1;
  double least = 1e300;
  for (int count = 1; count <= threads; ++count) {
    const int each = threads / count;
    if (each == 0 || units / count < 4 * steps) break;
    const double height = static_cast<double>(units) / count + (count > 1 ? 2.0 * steps : 0.0);
    const double cost = height * steps / std::min(each, steps);
    if (cost < 0.99 * least) {
      least = cost;
      best = count;
    }
  }
  std::vector<Band> bands;
  for (int i = 0; i < best; ++i) {
    const std::int64_t first = units * i / best, end = units * (i + 1) / best;
    bands.push_back({std::max<std::int64_t>(first - steps, 0), std::min(end + steps, units), first,
                     end});
  }
  return bands;
}

}  // namespace

template <class S>
void octree_forward(const Image& image, const Shape& shape, const std::vector<OctreeLevel>& levels,
                    std::uint64_t seed, std::uint64_t threshold, std::uint32_t sample,
                    const Output& output, const Options& options) {
  if (shape.cells() == 0) return;
  const int threads = std::max(options.threads, 1);
  const int lanes = operations_of<float, S>(*options.kernels).lanes;
  std::vector<Shape> shapes = {shape};
  for (std::size_t level = 0; level + 1 < levels.size(); ++level) {
    shapes.push_back(coarser(shapes.back(), levels[level].factor));
  }
  Pyramid pyramid(image, shapes, levels, useful_threads(threads, shape.cells(), 1));
  const Origin origin = {0, 0, 0};

  Buffer<S> parent;
  for (std::size_t level = levels.size(); level-- > 0;) {
    const Shape& here = shapes[level];
    const OctreeLevel& network = levels[level];
    const PackedWeights<float> weights(network.weights, lanes);
    const int stride = weights.sizes().padded_channels, inputs = weights.sizes().inputs;
    const std::int64_t units = here.units(), unit_stride = here.unit_cells() * stride;
    const Seed draws = {seed, static_cast<std::uint32_t>(level), threshold};
    const Shape& parent_shape = level + 1 < shapes.size() ? shapes[level + 1] : here;
    const Entrance<S> enter(pyramid, level, here, network.factor, parent_shape, parent.get(),
                            inputs, stride, threads);
    const int here_threads = useful_threads(threads, here.cells(), std::max(network.steps, 1));

    const std::int64_t slots = ring_slots(here, network.steps);
    const bool steps_change = network.steps > 0 && threshold > 0;
    const bool ring = level == 0 && steps_change && options.schedule != Schedule::kSweep &&
                      units >= 2 * slots &&
                      (here.dimension == 2 || options.schedule == Schedule::kWave);
    if (ring) {
      WaveWork<float, S> work;
      work.bands = bands_for(units, network.steps, here_threads);
      work.ring = slots;
      const Buffer<S> memory(static_cast<std::int64_t>(work.bands.size()) * slots * unit_stride);
      work.slot = [&](std::size_t band, std::int64_t unit) {
        const auto slot = static_cast<std::int64_t>(band) * slots + unit % slots;
        return memory.get() + slot * unit_stride;
      };
      work.feed = [&](int thread, std::int64_t unit, S* to) { enter(thread, unit, to); };
      work.drain = [&](int, std::int64_t unit, const S* from) {
        write(output, here, unit, from, inputs, stride);
      };
      run_wave(weights, here, work, network.steps, draws, origin, sample,
               static_cast<float*>(nullptr), here_threads, options);
      return;
    }

    Buffer<S> state(units * unit_stride);
    // By hand, for every thread has its own scratch row.
    Team::run(here_threads, [&](int index, Team& team) {
      for (std::int64_t unit = units * index / team.size();
           unit < units * (index + 1) / team.size(); ++unit) {
        enter(index, unit, state.get() + unit * unit_stride);
      }
    });
    parent.release();
    pyramid.forget(level);
    run_steps<float, S>(weights, here, state.get(), network.steps, draws, origin, sample, nullptr,
                        options);
    if (level == 0) {
      for_each(here_threads, units, [&](std::int64_t unit) {
        write(output, here, unit, state.get() + unit * unit_stride, inputs, stride);
      });
    }
    parent = std::move(state);
  }
}

template void octree_forward<float>(const Image&, const Shape&, const std::vector<OctreeLevel>&,
                                    std::uint64_t, std::uint64_t, std::uint32_t, const Output&,
                                    const Options&);
template void octree_forward<Half>(const Image&, const Shape&, const std::vector<OctreeLevel>&,
                                   std::uint64_t, std::uint64_t, std::uint32_t, const Output&,
                                   const Options&);

}  // namespace octreenca
