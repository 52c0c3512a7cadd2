#include "octree.hpp"

#include <algorithm>

#include "finite.hpp"
#include "level_input.hpp"
#include "pyramid.hpp"
#include "threads.hpp"

namespace octreenca {

namespace {

// How many wavefronts run side by side: more than one only where there are more threads than steps,
// for a further wavefront computes `steps` slices twice at each of its ends.
std::vector<Band> bands_for(std::int64_t slices, int steps, int threads) {
  int best = 1;
  double least = 1e300;
  for (int count = 1; count <= threads; ++count) {
    const int each = threads / count;
    if (each == 0 || slices / count < 4 * steps) break;
    const double height = static_cast<double>(slices) / count + (count > 1 ? 2.0 * steps : 0.0);
    const double cost = height * steps / std::min(each, steps);
    if (cost < 0.99 * least) {
      least = cost;
      best = count;
    }
  }
  std::vector<Band> bands;
  for (int i = 0; i < best; ++i) {
    const std::int64_t first = slices * i / best, end = slices * (i + 1) / best;
    bands.push_back({std::max<std::int64_t>(first - steps, 0), std::min(end + steps, slices), first,
                     end});
  }
  return bands;
}

}  // namespace

template <class S>
std::vector<NonFinite> octree_forward(const Image& image, const Shape& shape,
                                      const std::vector<OctreeLevel>& levels, std::uint64_t seed,
                                      std::uint64_t threshold, std::uint32_t sample,
                                      const Output& output, const Options& options) {
  std::vector<NonFinite> wrong(levels.size(), NonFinite{0, 0});
  if (shape.cells() == 0) return wrong;
  const int threads = std::max(options.threads, 1);
  const int lanes = operations_of<float, S>(*options.kernels).lanes;
  const std::vector<Shape> shapes = shapes_of(shape, levels);
  const auto finest = [&](std::int64_t z, std::int64_t y, float* to) {
    interleave(image, z, y, shape.width, to);
  };
  Pyramid pyramid(finest, image.channels, shapes, levels);
  pyramid.store(2, useful_threads(threads, shape.cells(), 1));  // level 1 would be the largest
  const Origin origin = {0, 0, 0};

  Buffer<S> parent;
  int parent_stride = 0;
  for (std::size_t level = levels.size(); level-- > 0;) {
    const Shape& here = shapes[level];
    const OctreeLevel& network = levels[level];
    const PackedWeights<float> weights(network.weights, lanes);
    const int stride = weights.sizes().padded_channels, inputs = weights.sizes().inputs;
    const std::int64_t slices = here.slices(), slice_stride = here.slice_cells() * stride;
    const Seed draws = {seed, static_cast<std::uint32_t>(level), threshold};
    const auto map = map_to(levels, level, lanes);
    Parents<S> parents;
    if (level + 1 < shapes.size()) {
      const Shape& above = shapes[level + 1];
      const auto row = [&parent, &above, parent_stride](std::int64_t z, std::int64_t y) {
        return parent.get() + (z * above.height + y) * above.width * parent_stride;
      };
      parents = {row, above.width, parent_stride, map.get()};
    }
    const LevelInput<S> enter(pyramid, level, here, network.factor, std::move(parents), inputs,
                              stride, *options.kernels, threads);
    const int here_threads = useful_threads(threads, here.cells(), std::max(network.steps, 1));

    const std::int64_t slots = ring_slots(here, network.steps);
    const bool steps_change = network.steps > 0 && threshold > 0;
    const bool ring = level == 0 && steps_change && options.schedule != Schedule::kSweep &&
                      slices >= 2 * slots &&
                      (here.dimension == 2 || options.schedule == Schedule::kWavefront);
    if (ring) {
      WavefrontWork<float, S> work;
      work.bands = bands_for(slices, network.steps, here_threads);
      work.ring = slots;
      const Buffer<S> memory(static_cast<std::int64_t>(work.bands.size()) * slots * slice_stride);
      work.slot = [&](std::size_t band, std::int64_t slice) {
        const auto slot = static_cast<std::int64_t>(band) * slots + slice % slots;
        return memory.get() + slot * slice_stride;
      };
      work.feed = [&](int thread, std::int64_t slice, S* to) { enter(thread, slice, to); };
      NonFiniteCells<float, S> found(operations_of<float, S>(*options.kernels), weights.sizes(),
                                     here);
      work.drain = [&](int, std::int64_t slice, const S* from) {
        write(output, here, slice, from, inputs, stride);
        if (options.count_non_finite) found.add(from);
      };
      run_wavefront(weights, here, work, network.steps, draws, origin, sample,
                    static_cast<float*>(nullptr), here_threads, options);
      wrong[level] = {found.found(), found.checked()};
      return wrong;
    }

    Buffer<S> state(slices * slice_stride);
    // By hand, for every thread has its own scratch row.
    Team::run(here_threads, [&](int index, Team& team) {
      for (std::int64_t slice = slices * index / team.size();
           slice < slices * (index + 1) / team.size(); ++slice) {
        enter(index, slice, state.get() + slice * slice_stride);
      }
    });
    parent.release();
    pyramid.forget(level);
    wrong[level] = run_steps<float, S>(weights, here, state.get(), network.steps, draws, origin,
                                       sample, nullptr, options);
    if (level == 0) {
      for_each(here_threads, slices, [&](std::int64_t slice) {
        write(output, here, slice, state.get() + slice * slice_stride, inputs, stride);
      });
    }
    parent = std::move(state);
    parent_stride = stride;
  }
  return wrong;
}

template std::vector<NonFinite> octree_forward<float>(const Image&, const Shape&,
                                                      const std::vector<OctreeLevel>&,
                                                      std::uint64_t, std::uint64_t, std::uint32_t,
                                                      const Output&, const Options&);
template std::vector<NonFinite> octree_forward<Half>(const Image&, const Shape&,
                                                     const std::vector<OctreeLevel>&,
                                                     std::uint64_t, std::uint64_t, std::uint32_t,
                                                     const Output&, const Options&);

}  // namespace octreenca
