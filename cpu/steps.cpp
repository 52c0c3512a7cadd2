#include "steps.hpp"

#include <algorithm>
#include <memory>

#include "schedule.hpp"
#include "threads.hpp"

namespace octreenca {

namespace {

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
void strip(const T* padded, T* tight, std::int64_t cells, const Sizes& sizes) {
  const int C = sizes.channels, P = sizes.padded_channels;
  for (std::int64_t i = 0; i < cells; ++i) std::copy_n(padded + i * P, C, tight + i * C);
}

}  // namespace

int useful_threads(int threads, std::int64_t cells, int steps) {
  // A cell-step takes some 30 ns, a thread 20 us to start: a thread for every 0.2 ms of work.
  const std::int64_t most = std::max<std::int64_t>(1, cells * steps / 8000);
  return static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), most));
}

namespace {

// One step of a unit, whatever the order.
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

  void compute(Workspace<T>& workspace, int step, std::int64_t unit, const S* above, const S* here,
               const S* below, Pending<T>& pending) const {
    const Draw draw =
        unit_draw(shape_, seed_, origin_, keys_[static_cast<std::size_t>(step)], unit);
    const Unit<S> planes = {{above, here, below}, shape_.unit_height(), shape_.width};
    Scratch<T>& scratch = workspace.scratch;
    operations_.draw(draw, planes.height, planes.width, scratch.flags, scratch.fired);
    (bf16_ ? operations_.forward_bf16 : operations_.forward)(planes, weights_.view(), scratch,
                                                             pending);
  }

  void commit(int step, std::int64_t unit, const Pending<T>& pending, S* here) const {
    T* old = nullptr;
    if (log_) {
      const auto index = static_cast<std::size_t>(step * shape_.units() + unit);
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

// Units done before a thread looks for other work: some 20 us of it.
std::int64_t wave_batch(const Shape& shape) {
  return std::clamp<std::int64_t>(1000 / std::max<std::int64_t>(shape.unit_cells(), 1), 1, 16);
}

}  // namespace

std::int64_t ring_slots(const Shape& shape, int steps) {
  return 2 * steps + 4 + 2 * wave_batch(shape);
}

template <class T, class S>
void run_wave(const PackedWeights<T>& weights, const Shape& shape, const WaveWork<T, S>& work,
              int steps, const Seed& seed, const Origin& origin, std::uint32_t sample, T* log,
              int threads, const Options& options) {
  const Sizes& sizes = weights.sizes();
  const Stepper<T, S> stepper(weights, shape, steps, seed, origin, sample, log, threads, options);
  const std::size_t bands = work.bands.size();
  const auto workspaces = make_workspaces<T>(threads, sizes, shape);
  const auto pendings =
      make_pendings<T>(bands * static_cast<std::size_t>(steps) * 2, sizes, shape);
  std::vector<std::unique_ptr<Progress>> progress;
  for (const Band& band : work.bands) {
    progress.push_back(std::make_unique<Progress>(band.end - band.first, steps, work.ring,
                                                  wave_batch(shape)));
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
      wave(
          index, *progress[number],
          [&](int thread, std::int64_t offset) {
            const std::int64_t unit = band.first + offset;
            if (work.feed) work.feed(thread, unit, work.slot(number, unit));
          },
          [&](int, int step, std::int64_t offset, int slot) {
            const std::int64_t unit = band.first + offset;
            stepper.compute(workspace, step, unit,
                            work.slot(number, mirrored_unit(unit - 1, band.first, band.end)),
                            work.slot(number, unit),
                            work.slot(number, mirrored_unit(unit + 1, band.first, band.end)),
                            pending(step, slot));
          },
          [&](int, int step, std::int64_t offset, int slot) {
            const std::int64_t unit = band.first + offset;
            stepper.commit(step, unit, pending(step, slot), work.slot(number, unit));
          },
          [&](int thread, std::int64_t offset) {
            const std::int64_t unit = band.first + offset;
            if (work.drain && unit >= band.drain_first && unit < band.drain_end) {
              work.drain(thread, unit, work.slot(number, unit));
            }
          });
    }
  });
}

template <class T, class S>
void run_steps(const PackedWeights<T>& weights, const Shape& shape, S* state, int steps,
               const Seed& seed, const Origin& origin, std::uint32_t sample, T* log,
               const Options& options) {
  if (steps == 0 || seed.threshold == 0 || shape.cells() == 0) return;
  const Sizes& sizes = weights.sizes();
  const std::int64_t units = shape.units();
  const std::int64_t unit_stride = shape.unit_cells() * sizes.padded_channels;
  int threads = useful_threads(options.threads, shape.cells(), steps);

  Schedule schedule = options.schedule;
  if (schedule == Schedule::kAuto) {
    // The wave keeps 2 * steps rows in the cache. Planes are too large for that.
    const bool waves = shape.dimension == 2 && threads <= steps && units >= 4 * steps;
    schedule = waves ? Schedule::kWave : Schedule::kSweep;
  }
  if (schedule == Schedule::kWave) {
    WaveWork<T, S> work;
    work.bands = {{0, units, 0, units}};
    work.ring = units;
    work.slot = [=](std::size_t, std::int64_t unit) { return state + unit * unit_stride; };
    run_wave(weights, shape, work, steps, seed, origin, sample, log, std::min(threads, steps),
             options);
    return;
  }

  threads = static_cast<int>(std::min<std::int64_t>(threads, units));
  const Stepper<T, S> stepper(weights, shape, steps, seed, origin, sample, log, threads, options);
  const auto workspaces = make_workspaces<T>(threads, sizes, shape);
  const auto pendings = make_pendings<T>(static_cast<std::size_t>(threads) * 3, sizes, shape);
  const auto pending = [&](int thread, int slot) -> Pending<T>& {
    return pendings[static_cast<std::size_t>(thread * 3 + slot)]->view;
  };
  const auto at = [=](std::int64_t unit) { return state + unit * unit_stride; };
  sweep(
      threads, units, steps,
      [&](int thread, int step, std::int64_t unit, int slot) {
        stepper.compute(*workspaces[static_cast<std::size_t>(thread)], step, unit,
                        at(mirrored_unit(unit - 1, 0, units)), at(unit),
                        at(mirrored_unit(unit + 1, 0, units)), pending(thread, slot));
      },
      [&](int thread, int step, std::int64_t unit, int slot) {
        stepper.commit(step, unit, pending(thread, slot), at(unit));
      });
}

template <class T>
void steps_forward(const RawWeights<T>& raw, const Shape& shape, int batch, T* state, int steps,
                   const Seed& seed, const std::vector<Origin>& origins, T* log,
                   const Options& options) {
  const PackedWeights<T> weights(raw, operations_of<T, T>(*options.kernels).lanes);
  const Sizes& sizes = weights.sizes();
  const std::int64_t cells = shape.cells();

  // Where every sample's log begins: behind the fired cells of those before.
  std::vector<std::int64_t> begins(static_cast<std::size_t>(batch), 0);
  if (log) {
    for (int s = 1; s < batch; ++s) {
      begins[static_cast<std::size_t>(s)] =
          begins[static_cast<std::size_t>(s - 1)] +
          fired_before(shape, seed, origins[static_cast<std::size_t>(s - 1)],
                       static_cast<std::uint32_t>(s - 1), steps, 1, *options.kernels)
                  .back() *
              sizes.outputs();
    }
  }
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
    strip(padded.get(), mine, cells, sizes);
  };
  // Samples side by side where one alone is too small to share.
  const bool shared = useful_threads(options.threads, cells, steps) == 1;
  if (shared && batch > 1) {
    Options alone = options;
    alone.threads = 1;
    for_each(useful_threads(options.threads, cells * batch, steps), batch,
             [&](std::int64_t sample) { run(sample, alone); });
  } else {
    for (int sample = 0; sample < batch; ++sample) run(sample, options);
  }
}

namespace {

// A unit's fired cells and their gradients, from before its neighbours add to them.
template <class T>
struct GatheredUnit {
  GatheredUnit(const Sizes& sizes, const Shape& shape)
      : x(shape.unit_cells() + 1),
        row_end(shape.unit_height()),
        gradients(shape.unit_cells() * sizes.padded_channels),
        fired{x.get(), row_end.get(), 0} {}
  Buffer<std::uint32_t> x;
  Buffer<std::int64_t> row_end;
  Buffer<T> gradients;
  Fired fired;
};

template <class T>
struct ThreadSums {
  explicit ThreadSums(const Sizes& sizes)
      : perceive(std::int64_t{sizes.taps()} * sizes.padded_channels, nullptr),
        hidden(std::int64_t{2} * sizes.channels * sizes.padded_hidden, nullptr),
        hidden_bias(sizes.padded_hidden, nullptr),
        update_transposed(std::int64_t{sizes.outputs()} * sizes.padded_hidden, nullptr),
        view{perceive.get(), hidden.get(), hidden_bias.get(), update_transposed.get()} {}
  Buffer<T> perceive, hidden, hidden_bias, update_transposed;
  Gradients<T> view;
};

template <class T>
using Sums = std::vector<std::unique_ptr<ThreadSums<T>>>;

// One sample, `sums` one a thread.
template <class T>
void undo_steps(const PackedWeights<T>& weights, const Shape& shape, T* state, T* log, T* gradient,
                int steps, const Seed& seed, const Origin& origin, std::uint32_t sample,
                const Options& options, int threads, const Sums<T>& sums, int first_sum) {
  if (steps == 0 || seed.threshold == 0 || shape.cells() == 0) return;
  const Sizes& sizes = weights.sizes();
  const auto& operations = operations_of<T, T>(*options.kernels);
  const std::int64_t units = shape.units(), height = shape.unit_height(), width = shape.width;
  const std::int64_t unit_stride = shape.unit_cells() * sizes.padded_channels;
  const auto before = fired_before(shape, seed, origin, sample, steps, threads, *options.kernels);
  const auto workspaces = make_workspaces<T>(threads, sizes, shape);
  std::vector<std::unique_ptr<GatheredUnit<T>>> gathered;
  for (int i = 0; i < 4 * threads; ++i) {
    gathered.push_back(std::make_unique<GatheredUnit<T>>(sizes, shape));
  }

  Team::run(threads, [&](int index, Team& team) {
    const std::int64_t first = units * index / team.size(), end = units * (index + 1) / team.size();
    Scratch<T>& scratch = workspaces[static_cast<std::size_t>(index)]->scratch;
    Gradients<T>& mine = sums[static_cast<std::size_t>(first_sum + index)]->view;
    GatheredUnit<T>* slots[4];
    for (int i = 0; i < 4; ++i) slots[i] = gathered[static_cast<std::size_t>(4 * index + i)].get();

    const auto key_of = [&](int step) {
      return draw_key(seed.seed, seed.level, static_cast<std::uint32_t>(step), sample);
    };
    const auto swap_units = [&](int step) {
      const auto key = key_of(step);
      for (std::int64_t unit = first; unit < end; ++unit) {
        operations.draw(unit_draw(shape, seed, origin, key, unit), height, width, scratch.flags,
                        scratch.fired);
        operations.swap(sizes, scratch.fired, height, width, state + unit * unit_stride,
                        log + before[static_cast<std::size_t>(step * units + unit)] *
                                  sizes.outputs());
      }
    };

    for (int step = steps - 1; step >= 0; --step) {
      const auto key = key_of(step);
      const auto gather = [&](std::int64_t unit, GatheredUnit<T>& into) {
        operations.draw(unit_draw(shape, seed, origin, key, unit), height, width, scratch.flags,
                        into.fired);
        operations.gather(sizes, into.fired, height, width, gradient + unit * unit_stride,
                          into.gradients.get());
      };
      const auto backward = [&](std::int64_t unit, const GatheredUnit<T>& from) {
        const std::int64_t above = mirrored_unit(unit - 1, 0, units) * unit_stride;
        const std::int64_t here = unit * unit_stride;
        const std::int64_t below = mirrored_unit(unit + 1, 0, units) * unit_stride;
        const Unit<T> planes = {{state + above, state + here, state + below}, height, width};
        T* const gradients[3] = {gradient + above, gradient + here, gradient + below};
        operations.backward(planes, weights.view(), scratch, from.fired, from.gradients.get(),
                            gradients, mine);
      };

      swap_units(step);
      // Every unit's own gradient is gathered before a neighbour adds to it. The first and the
      // last unit of a band add to another thread's band: each has a turn of its own.
      GatheredUnit<T>&first_gathered = *slots[0], &last_gathered = *slots[1];
      GatheredUnit<T>*current = slots[2], *next = slots[3];
      gather(first, first_gathered);
      if (end - first > 1) gather(end - 1, last_gathered);
      team.meet();
      if (end - first > 2) gather(first + 1, *current);
      for (std::int64_t unit = first + 1; unit < end - 1; ++unit) {
        if (unit + 1 < end - 1) gather(unit + 1, *next);
        backward(unit, *current);
        std::swap(current, next);
      }
      team.meet();
      backward(first, first_gathered);
      team.meet();
      if (end - first > 1) backward(end - 1, last_gathered);
      team.meet();
    }
    // The caller's state and log are as they were.
    for (int step = 0; step < steps; ++step) swap_units(step);
  });
}

}  // namespace

template <class T>
void steps_backward(const RawWeights<T>& raw, const Shape& shape, int batch, T* state, T* log,
                    T* gradient, int steps, const Seed& seed, const std::vector<Origin>& origins,
                    const WeightGradients<T>& gradients, const Options& options) {
  const PackedWeights<T> weights(raw, operations_of<T, T>(*options.kernels).lanes);
  const Sizes& sizes = weights.sizes();
  const std::int64_t cells = shape.cells();
  // A band's first and last unit touch one unit beyond it; with three units a band, no two bands
  // touch the same in one turn.
  const int threads = static_cast<int>(
      std::max<std::int64_t>(1, std::min<std::int64_t>(useful_threads(options.threads, cells, steps),
                                                       shape.units() / 3)));
  const bool shared = threads == 1 && batch > 1;
  const int teams = shared ? std::min(batch, useful_threads(options.threads, cells * batch, steps)) : 1;

  Sums<T> sums;
  for (int i = 0; i < std::max(threads, shared ? batch : 1); ++i) {
    sums.push_back(std::make_unique<ThreadSums<T>>(sizes));
  }
  std::vector<std::int64_t> begins(static_cast<std::size_t>(batch), 0);
  for (int s = 1; s < batch; ++s) {
    begins[static_cast<std::size_t>(s)] =
        begins[static_cast<std::size_t>(s - 1)] +
        fired_before(shape, seed, origins[static_cast<std::size_t>(s - 1)],
                     static_cast<std::uint32_t>(s - 1), steps, 1, *options.kernels)
                .back() *
            sizes.outputs();
  }
  const auto run = [&](std::int64_t sample, int first_sum) {
    const auto s = static_cast<std::size_t>(sample);
    T* mine = state + sample * cells * sizes.channels;
    T* my_gradient = gradient + sample * cells * sizes.channels;
    const auto number = static_cast<std::uint32_t>(sample);
    const auto undo = [&](T* state_, T* gradient_) {
      undo_steps(weights, shape, state_, log + begins[s], gradient_, steps, seed, origins[s],
                 number, options, threads, sums, first_sum);
    };
    if (sizes.channels == sizes.padded_channels) {
      undo(mine, my_gradient);
      return;
    }
    const Buffer<T> padded(cells * sizes.padded_channels);
    const Buffer<T> padded_gradient(cells * sizes.padded_channels);
    pad(mine, padded.get(), cells, sizes);
    pad(my_gradient, padded_gradient.get(), cells, sizes);
    undo(padded.get(), padded_gradient.get());
    strip(padded_gradient.get(), my_gradient, cells, sizes);
  };
  if (shared) {
    for_each(teams, batch, [&](std::int64_t sample) { run(sample, static_cast<int>(sample)); });
  } else {
    for (int sample = 0; sample < batch; ++sample) run(sample, 0);
  }
  for (const auto& sum : sums) {
    weights.unpack(sum->view, gradients.perceive, gradients.perceive_bias, gradients.hidden_weight,
                   gradients.hidden_bias, gradients.update);
  }
}

template void run_wave<float, float>(const PackedWeights<float>&, const Shape&,
                                     const WaveWork<float, float>&, int, const Seed&,
                                     const Origin&, std::uint32_t, float*, int, const Options&);
template void run_wave<float, Half>(const PackedWeights<float>&, const Shape&,
                                    const WaveWork<float, Half>&, int, const Seed&,
                                    const Origin&, std::uint32_t, float*, int, const Options&);
template void run_steps<float, float>(const PackedWeights<float>&, const Shape&, float*, int,
                                      const Seed&, const Origin&, std::uint32_t, float*,
                                      const Options&);
template void run_steps<float, Half>(const PackedWeights<float>&, const Shape&, Half*, int,
                                     const Seed&, const Origin&, std::uint32_t, float*,
                                     const Options&);
template void steps_forward<float>(const RawWeights<float>&, const Shape&, int, float*, int,
                                   const Seed&, const std::vector<Origin>&, float*,
                                   const Options&);
template void steps_forward<double>(const RawWeights<double>&, const Shape&, int, double*, int,
                                    const Seed&, const std::vector<Origin>&, double*,
                                    const Options&);
template void steps_backward<float>(const RawWeights<float>&, const Shape&, int, float*, float*,
                                    float*, int, const Seed&, const std::vector<Origin>&,
                                    const WeightGradients<float>&, const Options&);
template void steps_backward<double>(const RawWeights<double>&, const Shape&, int, double*,
                                     double*, double*, int, const Seed&,
                                     const std::vector<Origin>&, const WeightGradients<double>&,
                                     const Options&);

}  // namespace octreenca
