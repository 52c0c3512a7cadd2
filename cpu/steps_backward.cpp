#include <algorithm>
#include <memory>

#include "steps.hpp"
#include "threads.hpp"

namespace octreenca {

namespace {

// A slice's fired cells and their gradients, from before its neighbours add to them.
template <class T>
struct GatheredSlice {
  GatheredSlice(const Sizes& sizes, const Shape& shape)
      : x(shape.slice_cells() + kFiredRoom),
        row_end(shape.slice_height()),
        gradients(shape.slice_cells() * sizes.padded_channels),
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
void undo_steps(const PackedWeights<T>& weights, const Shape& shape, T* state, T* log, bool restore,
                T* gradient, int steps, const Seed& seed, const Origin& origin,
                std::uint32_t sample, const Options& options, int threads, const Sums<T>& sums, int first_sum) {
  if (steps == 0 || seed.threshold == 0 || shape.cells() == 0) return;
  const Sizes& sizes = weights.sizes();
  const auto& operations = operations_of<T, T>(*options.kernels);
  const std::int64_t slices = shape.slices(), height = shape.slice_height(), width = shape.width;
  const std::int64_t slice_stride = shape.slice_cells() * sizes.padded_channels;
  const auto before = fired_before(shape, seed, origin, sample, steps, threads, *options.kernels);
  const auto workspaces = make_workspaces<T>(threads, sizes, shape);
  std::vector<std::unique_ptr<GatheredSlice<T>>> gathered;
  for (int i = 0; i < 4 * threads; ++i) {
    gathered.push_back(std::make_unique<GatheredSlice<T>>(sizes, shape));
  }

  Team::run(threads, [&](int index, Team& team) {
    const std::int64_t first = slices * index / team.size();
    const std::int64_t end = slices * (index + 1) / team.size();
    Scratch<T>& scratch = workspaces[static_cast<std::size_t>(index)]->scratch;
    Gradients<T>& mine = sums[static_cast<std::size_t>(first_sum + index)]->view;
    GatheredSlice<T>* slots[4];
    for (int i = 0; i < 4; ++i) slots[i] = gathered[static_cast<std::size_t>(4 * index + i)].get();

    const auto undo_slices = [&](int step, std::uint32_t key) {
      for (std::int64_t slice = first; slice < end; ++slice) {
        operations.draw(slice_draw(shape, seed, origin, key, slice), height, width, scratch.flags,
                        scratch.fired);
        T* old = log + before[static_cast<std::size_t>(step * slices + slice)] * sizes.outputs();
        if (restore) {
          operations.swap(sizes, scratch.fired, height, width, state + slice * slice_stride, old);
        } else {
          operations.undo(sizes, scratch.fired, height, width, state + slice * slice_stride, old);
        }
      }
    };
    const auto key_of = [&](int step) {
      return draw_key(seed.seed, seed.level, static_cast<std::uint32_t>(step), sample);
    };

    for (int step = steps - 1; step >= 0; --step) {
      const auto key = key_of(step);
      const auto gather = [&](std::int64_t slice, GatheredSlice<T>& into) {
        operations.draw(slice_draw(shape, seed, origin, key, slice), height, width, scratch.flags,
                        into.fired);
        operations.gather(sizes, into.fired, height, width, gradient + slice * slice_stride,
                          into.gradients.get());
      };
      const auto backward = [&](std::int64_t slice, const GatheredSlice<T>& from) {
        const std::int64_t above = mirrored_slice(slice - 1, 0, slices) * slice_stride;
        const std::int64_t here = slice * slice_stride;
        const std::int64_t below = mirrored_slice(slice + 1, 0, slices) * slice_stride;
        const Slice<T> planes = {{state + above, state + here, state + below}, height, width};
        T* const gradients[3] = {gradient + above, gradient + here, gradient + below};
        operations.backward(planes, weights.view(), scratch, from.fired, from.gradients.get(),
                            gradients, mine);
      };

      undo_slices(step, key);
      // Every slice's own gradient is gathered before a neighbour adds to it. The first and the
      // last slice of a band add to another thread's band: each has a turn of its own.
      GatheredSlice<T>&first_gathered = *slots[0], &last_gathered = *slots[1];
      GatheredSlice<T>*current = slots[2], *next = slots[3];
      gather(first, first_gathered);
      if (end - first > 1) gather(end - 1, last_gathered);
      team.barrier();
      if (end - first > 2) gather(first + 1, *current);
      for (std::int64_t slice = first + 1; slice < end - 1; ++slice) {
        if (slice + 1 < end - 1) gather(slice + 1, *next);
        backward(slice, *current);
        std::swap(current, next);
      }
      team.barrier();
      backward(first, first_gathered);
      team.barrier();
      if (end - first > 1) backward(end - 1, last_gathered);
      team.barrier();
    }
    for (int step = 0; restore && step < steps; ++step) undo_slices(step, key_of(step));
  });
}

}  // namespace

template <class T>
void steps_backward(const RawWeights<T>& raw, const Shape& shape, int batch, T* state, T* log,
                    bool restore, T* gradient, int steps, const Seed& seed,
                    const std::vector<Origin>& origins,
                    const WeightGradients<T>& gradients, const Options& options) {
  const PackedWeights<T> weights(raw, operations_of<T, T>(*options.kernels).lanes);
  const Sizes& sizes = weights.sizes();
  const std::int64_t cells = shape.cells();
  // A band's first and last slice touch one slice beyond it; with three slices a band, no two bands
  // touch the same in one turn.
  const int most = useful_threads(options.threads, cells, steps);
  const int threads = static_cast<int>(std::clamp<std::int64_t>(shape.slices() / 3, 1, most));
  const std::int64_t alone = threads == 1 ? batch : batch - batch % threads;

  // The sums of every sample that is computed alone, then those of the threads that share one.
  Sums<T> sums;
  for (std::int64_t i = 0; i < alone + (alone < batch ? threads : 0); ++i) {
    sums.push_back(std::make_unique<ThreadSums<T>>(sizes));
  }
  const auto begins = log_begins(shape, batch, steps, seed, origins, sizes, *options.kernels);
  const auto run = [&](std::int64_t sample, int with, std::int64_t first_sum) {
    const auto s = static_cast<std::size_t>(sample);
    T* mine = state + sample * cells * sizes.channels;
    T* my_gradient = gradient + sample * cells * sizes.channels;
    const auto number = static_cast<std::uint32_t>(sample);
    const auto undo = [&](T* state_, T* gradient_) {
      undo_steps(weights, shape, state_, log + begins[s], restore, gradient_, steps, seed, origins[s],
                 number, options, with, sums, static_cast<int>(first_sum));
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
    unpad(padded_gradient.get(), my_gradient, cells, sizes);
  };
  for_each(useful_threads(options.threads, cells * batch, steps), alone,
           [&](std::int64_t sample) { run(sample, 1, sample); });
  for (std::int64_t sample = alone; sample < batch; ++sample) run(sample, threads, alone);
  for (const auto& sum : sums) {
    weights.unpack(sum->view, gradients.perceive, gradients.perceive_bias, gradients.hidden_weight,
                   gradients.hidden_bias, gradients.update);
  }
}

template void steps_backward<float>(const RawWeights<float>&, const Shape&, int, float*, float*,
                                    bool, float*, int, const Seed&, const std::vector<Origin>&,
                                    const WeightGradients<float>&, const Options&);
template void steps_backward<double>(const RawWeights<double>&, const Shape&, int, double*,
                                     double*, bool, double*, int, const Seed&,
                                     const std::vector<Origin>&, const WeightGradients<double>&,
                                     const Options&);

}  // namespace octreenca
