#include "steps.hpp"

#include <algorithm>
#include <memory>

#include "finite.hpp"
#include "schedule.hpp"
#include "stepper.hpp"
#include "threads.hpp"

namespace octreenca {

int useful_threads(int threads, std::int64_t cells, int steps) {
  // A cell-step takes some 30 ns, a thread 20 us to start: a thread for every 0.2 ms of work.
  const std::int64_t most = std::max<std::int64_t>(1, cells * steps / 8000);
  return static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), most));
}

std::int64_t samples_alone(int threads, int batch, std::int64_t cells, int steps) {
  const int useful = useful_threads(threads, cells, steps);
  return useful == 1 ? batch : batch - batch % useful;
}

std::int64_t wavefront_batch(const Shape& shape) {
  return std::clamp<std::int64_t>(1000 / std::max<std::int64_t>(shape.slice_cells(), 1), 1, 16);
}

std::int64_t ring_slots(const Shape& shape, int steps) {
  return 2 * steps + 4 + 2 * wavefront_batch(shape);
}

template <class T, class S>
void run_wavefront(const PackedWeights<T>& weights, const Shape& shape,
                   const WavefrontWork<T, S>& work, int steps, const Seed& seed,
                   const Origin& origin, std::uint32_t sample, T* log, int threads,
                   const Options& options) {
  const Sizes& sizes = weights.sizes();
  const Stepper<T, S> stepper(weights, shape, steps, seed, origin, sample, log, threads, options);
  const std::size_t bands = work.bands.size();
  const auto workspaces = make_workspaces<T>(threads, sizes, shape);
  const auto pendings =
      make_pendings<T>(bands * static_cast<std::size_t>(steps) * 2, sizes, shape);
  std::vector<std::unique_ptr<Progress>> progress;
  for (const Band& band : work.bands) {
    progress.push_back(std::make_unique<Progress>(band.end - band.first, steps, work.ring,
                                                  wavefront_batch(shape)));
  }
  Team::run(threads, [&](int index, Team&) {
    Workspace<T>& workspace = *workspaces[static_cast<std::size_t>(index)];
    // Its own band first, then whatever others have left.
    for (std::size_t turn = 0; turn < bands; ++turn) {
      const std::size_t number = (static_cast<std::size_t>(index) + turn) % bands;
      const Band& band = work.bands[number];
      const auto pending = [&](int step, int slot) -> Pending<T>& {
        const std::size_t first = (number * static_cast<std::size_t>(steps) +
                                   static_cast<std::size_t>(step)) * 2;
        return pendings[first + static_cast<std::size_t>(slot)]->view;
      };
      wavefront(
          index, *progress[number],
          [&](int thread, std::int64_t offset) {
            const std::int64_t slice = band.first + offset;
            if (work.feed) work.feed(thread, slice, work.slot(number, slice));
          },
          [&](int, int step, std::int64_t offset, int slot) {
            const std::int64_t slice = band.first + offset;
            stepper.compute(workspace, step, slice,
                            work.slot(number, mirrored_slice(slice - 1, band.first, band.end)),
                            work.slot(number, slice),
                            work.slot(number, mirrored_slice(slice + 1, band.first, band.end)),
                            pending(step, slot));
          },
          [&](int, int step, std::int64_t offset, int slot) {
            const std::int64_t slice = band.first + offset;
            stepper.commit(step, slice, pending(step, slot), work.slot(number, slice));
          },
          [&](int thread, std::int64_t offset) {
            const std::int64_t slice = band.first + offset;
            if (work.drain && slice >= band.drain_first && slice < band.drain_end) {
              work.drain(thread, slice, work.slot(number, slice));
            }
          });
    }
  });
}

template <class T, class S>
NonFinite run_steps(const PackedWeights<T>& weights, const Shape& shape, S* state, int steps,
                    const Seed& seed, const Origin& origin, std::uint32_t sample, T* log,
                    const Options& options) {
  if (shape.cells() == 0) return {0, 0};
  const Sizes& sizes = weights.sizes();
  const std::int64_t slices = shape.slices();
  const std::int64_t slice_stride = shape.slice_cells() * sizes.padded_channels;
  const auto at = [=](std::int64_t slice) { return state + slice * slice_stride; };
  NonFiniteCells<T, S> wrong(operations_of<T, S>(*options.kernels), sizes, shape);
  const auto finished = [&](const S* slice) {
    if (options.count_non_finite) wrong.add(slice);
  };
  if (steps == 0 || seed.threshold == 0) {
    if (options.count_non_finite) {
      for_each(useful_threads(options.threads, shape.cells(), 1), slices,
               [&](std::int64_t slice) { wrong.add(at(slice)); });
    }
    return {wrong.found(), wrong.checked()};
  }
  int threads = useful_threads(options.threads, shape.cells(), steps);

  Schedule schedule = options.schedule;
  if (schedule == Schedule::kAuto) {
    // The wavefront keeps 2 * steps rows in the cache. Planes are too large for that.
    const bool wavefronts = shape.dimension == 2 && threads <= steps && slices >= 4 * steps;
    schedule = wavefronts ? Schedule::kWavefront : Schedule::kSweep;
  }
  if (schedule == Schedule::kWavefront) {
    WavefrontWork<T, S> work;
    work.bands = {{0, slices, 0, slices}};
    work.ring = slices;
    work.slot = [=](std::size_t, std::int64_t slice) { return at(slice); };
    work.drain = [&](int, std::int64_t, const S* slice) { finished(slice); };
    run_wavefront(weights, shape, work, steps, seed, origin, sample, log,
                  std::min(threads, steps), options);
    return {wrong.found(), wrong.checked()};
  }

  threads = static_cast<int>(std::min<std::int64_t>(threads, slices));
  const Stepper<T, S> stepper(weights, shape, steps, seed, origin, sample, log, threads, options);
  const auto workspaces = make_workspaces<T>(threads, sizes, shape);
  const auto pendings = make_pendings<T>(static_cast<std::size_t>(threads) * 3, sizes, shape);
  const auto pending = [&](int thread, int slot) -> Pending<T>& {
    return pendings[static_cast<std::size_t>(thread * 3 + slot)]->view;
  };
  sweep(
      threads, slices, steps,
      [&](int thread, int step, std::int64_t slice, int slot) {
        stepper.compute(*workspaces[static_cast<std::size_t>(thread)], step, slice,
                        at(mirrored_slice(slice - 1, 0, slices)), at(slice),
                        at(mirrored_slice(slice + 1, 0, slices)), pending(thread, slot));
      },
      [&](int thread, int step, std::int64_t slice, int slot) {
        stepper.commit(step, slice, pending(thread, slot), at(slice));
        if (step == steps - 1) finished(at(slice));
      });
  return {wrong.found(), wrong.checked()};
}

template <class T>
void steps_forward(const RawWeights<T>& raw, const Shape& shape, int batch, T* state, int steps,
                   const Seed& seed, const std::vector<Origin>& origins, T* log,
                   const Options& options) {
  const PackedWeights<T> weights(raw, operations_of<T, T>(*options.kernels).lanes);
  const Sizes& sizes = weights.sizes();
  const std::int64_t cells = shape.cells();

  std::vector<std::int64_t> begins;
  if (log) begins = log_begins(shape, batch, steps, seed, origins, sizes, *options.kernels);
  const auto run = [&](std::int64_t sample, const Options& with) {
    const auto s = static_cast<std::size_t>(sample);
    T* mine = state + sample * cells * sizes.channels;
    T* my_log = log ? log + begins[s] : nullptr;
    const auto number = static_cast<std::uint32_t>(sample);
    if (sizes.channels == sizes.padded_channels) {
      run_steps<T, T>(weights, shape, mine, steps, seed, origins[s], number, my_log, with);
      return;
    }
    const Buffer<T> padded(cells * sizes.padded_channels);
    pad(mine, padded.get(), cells, sizes);
    run_steps<T, T>(weights, shape, padded.get(), steps, seed, origins[s], number, my_log, with);
    unpad(padded.get(), mine, cells, sizes);
  };
  const std::int64_t alone = samples_alone(options.threads, batch, cells, steps);
  Options one = options;
  one.threads = 1;
  for_each(useful_threads(options.threads, cells * batch, steps), alone,
           [&](std::int64_t sample) { run(sample, one); });
  for (std::int64_t sample = alone; sample < batch; ++sample) run(sample, options);
}

template void run_wavefront<float, float>(const PackedWeights<float>&, const Shape&,
                                          const WavefrontWork<float, float>&, int, const Seed&,
                                          const Origin&, std::uint32_t, float*, int,
                                          const Options&);
template void run_wavefront<float, Half>(const PackedWeights<float>&, const Shape&,
                                         const WavefrontWork<float, Half>&, int, const Seed&,
                                         const Origin&, std::uint32_t, float*, int,
                                         const Options&);
template NonFinite run_steps<float, float>(const PackedWeights<float>&, const Shape&, float*, int,
                                           const Seed&, const Origin&, std::uint32_t, float*,
                                           const Options&);
template NonFinite run_steps<float, Half>(const PackedWeights<float>&, const Shape&, Half*, int,
                                          const Seed&, const Origin&, std::uint32_t, float*,
                                          const Options&);
template void steps_forward<float>(const RawWeights<float>&, const Shape&, int, float*, int,
                                   const Seed&, const std::vector<Origin>&, float*,
                                   const Options&);
template void steps_forward<double>(const RawWeights<double>&, const Shape&, int, double*, int,
                                    const Seed&, const std::vector<Origin>&, double*,
                                    const Options&);
}  // namespace octreenca
