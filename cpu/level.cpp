#include "level.hpp"

#include <cstring>
#include <stdexcept>

#include "threads.hpp"

namespace octreenca {

namespace {

int padded(int count, int lanes) { return (count + lanes - 1) / lanes * lanes; }

// The upper half of a float, rounded to nearest, ties to even.
std::uint32_t bf16(double value) {
  const auto narrow = static_cast<float>(value);
  std::uint32_t word;
  std::memcpy(&word, &narrow, 4);
  if (narrow != narrow) return (word | 0x400000u) >> 16;
  return (word + 0x7FFFu + ((word >> 16) & 1u)) >> 16;
}

}  // namespace

template <class T>
PackedWeights<T>::PackedWeights(const RawWeights<T>& raw, int lanes) : raw_(raw) {
  Sizes& sizes = view_.sizes;
  sizes = {raw.dimension, raw.channels, raw.inputs, raw.hidden, padded(raw.channels, lanes),
           padded(raw.hidden, lanes), padded(2 * raw.channels, lanes)};
  const int C = raw.channels, H = raw.hidden, taps = sizes.taps(), changing = sizes.outputs();
  const int pc = sizes.padded_channels, ph = sizes.padded_hidden, pd = sizes.padded_doubled;

  const std::int64_t counts[] = {std::int64_t{taps} * pc, std::int64_t{2} * C * ph, ph,
                                 std::int64_t{H} * pc,    std::int64_t{changing} * ph,
                                 std::int64_t{H} * pd};
  std::int64_t total = 0;
  for (const auto count : counts) total += count;
  memory_ = Buffer<T>(total, nullptr);
  T* at[6];
  T* next = memory_.get();
  for (int i = 0; i < 6; ++i) {
    at[i] = next;
    next += counts[i];
  }
  T *perceive = at[0], *hidden = at[1], *bias = at[2], *update = at[3], *update_t = at[4],
    *hidden_t = at[5];
  for (int c = 0; c < C; ++c) {
    for (int tap = 0; tap < taps; ++tap) perceive[tap * pc + c] = raw.perceive[c * taps + tap];
  }
  for (int j = 0; j < H; ++j) {
    // perceive's bias reaches the hidden units through the second half of the columns
    double sum = raw.hidden_bias[j];
    for (int k = 0; k < 2 * C; ++k) {
      const T weight = raw.hidden_weight[j * 2 * C + k];
      hidden[k * ph + j] = weight;
      hidden_t[j * pd + k] = weight;
      if (k >= C) sum += static_cast<double>(weight) * raw.perceive_bias[k - C];
    }
    bias[j] = static_cast<T>(sum);
    for (int o = 0; o < changing; ++o) {
      update[j * pc + raw.inputs + o] = raw.update[o * H + j];
      update_t[o * ph + j] = raw.update[o * H + j];
    }
  }
  view_.perceive = perceive;
  view_.hidden = hidden;
  view_.hidden_bias = bias;
  view_.update = update;
  view_.update_transposed = update_t;
  view_.hidden_transposed = hidden_t;

  const int update_rows = (H + 1) / 2;
  pairs_ = Buffer<std::uint32_t>(std::int64_t{C} * ph + std::int64_t{update_rows} * pc, nullptr);
  std::uint32_t* hidden_pairs = pairs_.get();
  std::uint32_t* update_pairs = hidden_pairs + std::int64_t{C} * ph;
  for (int k = 0; k < 2 * C; ++k) {
    for (int j = 0; j < H; ++j) {
      hidden_pairs[k / 2 * ph + j] |= bf16(hidden[k * ph + j]) << (k % 2 * 16);
    }
  }
  for (int j = 0; j < H; ++j) {
    for (int c = 0; c < pc; ++c) {
      update_pairs[j / 2 * pc + c] |= bf16(update[j * pc + c]) << (j % 2 * 16);
    }
  }
  view_.hidden_pairs = hidden_pairs;
  view_.update_pairs = update_pairs;
}

template <class T>
void PackedWeights<T>::unpack(const Gradients<T>& sums, T* perceive, T* perceive_bias,
                              T* hidden_weight, T* hidden_bias, T* update) const {
  const Sizes& sizes = view_.sizes;
  const int C = sizes.channels, H = sizes.hidden, taps = sizes.taps();
  const int pc = sizes.padded_channels, ph = sizes.padded_hidden;
  for (int c = 0; c < C; ++c) {
    for (int tap = 0; tap < taps; ++tap) perceive[c * taps + tap] += sums.perceive[tap * pc + c];
    // The bias was folded into the hidden units' bias.
    double sum = 0;
    for (int j = 0; j < H; ++j) {
      sum += static_cast<double>(view_.hidden[(C + c) * ph + j]) * sums.hidden_bias[j];
    }
    perceive_bias[c] += static_cast<T>(sum);
  }
  for (int j = 0; j < H; ++j) {
    const T through_bias = sums.hidden_bias[j];
    hidden_bias[j] += through_bias;
    for (int k = 0; k < 2 * C; ++k) {
      const T bias = k < C ? T(0) : raw_.perceive_bias[k - C];
      hidden_weight[j * 2 * C + k] += sums.hidden[k * ph + j] + through_bias * bias;
    }
    for (int o = 0; o < sizes.outputs(); ++o) {
      update[o * H + j] += sums.update_transposed[o * ph + j];
    }
  }
}

template <class T>
PackedMap<T>::PackedMap(const T* from_parent, int inputs, int children, int parents, int lanes)
    : view_{inputs, parents, children, padded(parents, lanes), padded(children, lanes), nullptr,
            nullptr} {
  const int taken = parents - inputs, given = children - inputs;
  memory_ = Buffer<T>(std::int64_t{taken} * view_.padded_children +
                          std::int64_t{given} * view_.padded_parents,
                      nullptr);
  T* forward = memory_.get();
  T* backward = forward + std::int64_t{taken} * view_.padded_children;
  for (int j = 0; j < given; ++j) {
    for (int k = 0; k < taken; ++k) {
      const T weight = from_parent[j * taken + k];
      forward[k * view_.padded_children + inputs + j] = weight;
      backward[j * view_.padded_parents + inputs + k] = weight;
    }
  }
  view_.forward = forward;
  view_.backward = backward;
}

template <class T>
std::int64_t PackedMap<T>::sums() const {
  return std::int64_t{view_.children - view_.inputs} * view_.padded_parents;
}

template <class T>
void PackedMap<T>::unpack(const T* sums, T* from_parent) const {
  const int taken = view_.parents - view_.inputs;
  for (int j = 0; j < view_.children - view_.inputs; ++j) {
    for (int k = 0; k < taken; ++k) {
      from_parent[j * taken + k] += sums[j * view_.padded_parents + view_.inputs + k];
    }
  }
}

template <class T>
Workspace<T>::Workspace(const Sizes& sizes, const Shape& shape)
    : flags_(shape.width + static_cast<std::int64_t>(kAlignment)),
      x_(shape.slice_cells() + kFiredRoom),
      row_end_(shape.slice_height()) {
  const std::int64_t inputs = sizes.padded_doubled + sizes.padded_channels;
  const std::int64_t counts[] = {kChunk * inputs, std::int64_t{kChunk} * sizes.padded_hidden,
                                 std::int64_t{kChunk} * sizes.padded_channels,
                                 std::int64_t{kChunk} * sizes.padded_hidden, kChunk * inputs};
  std::int64_t total = 0;
  for (const auto count : counts) total += count;
  memory_ = Buffer<T>(total, nullptr);
  T* next = memory_.get();
  T** const views[] = {&scratch.inputs, &scratch.hidden, &scratch.grad_out, &scratch.grad_hidden,
                       &scratch.grad_inputs};
  for (int i = 0; i < 5; ++i) {
    *views[i] = next;
    next += counts[i];
  }
  scratch.flags = flags_.get();
  scratch.fired = {x_.get(), row_end_.get(), 0};
}

Draw slice_draw(const Shape& shape, const Seed& seed, const Origin& origin, std::uint32_t key,
               std::int64_t slice) {
  const auto offset = static_cast<std::uint32_t>(slice);
  if (shape.dimension == 2) return {key, seed.threshold, origin.z, origin.y + offset, origin.x};
  return {key, seed.threshold, origin.z + offset, origin.y, origin.x};
}

std::vector<std::int64_t> fired_before(const Shape& shape, const Seed& seed, const Origin& origin,
                                       std::uint32_t sample, int steps, int threads,
                                       const KernelSet& kernels) {
  const std::int64_t slices = shape.slices();
  std::vector<std::int64_t> before(static_cast<std::size_t>(steps * slices + 1), 0);
  for_each(threads, steps, [&](std::int64_t step) {
    const Buffer<std::uint8_t> flags(shape.width + static_cast<std::int64_t>(kAlignment));
    const auto key = draw_key(seed.seed, seed.level, static_cast<std::uint32_t>(step), sample);
    for (std::int64_t slice = 0; slice < slices; ++slice) {
      const Draw draw = slice_draw(shape, seed, origin, key, slice);
      before[static_cast<std::size_t>(step * slices + slice + 1)] =
          kernels.single.count(draw, shape.slice_height(), shape.width, flags.get());
    }
  });
  for (std::size_t i = 1; i < before.size(); ++i) before[i] += before[i - 1];
  return before;
}

std::vector<std::int64_t> log_begins(const Shape& shape, int batch, int steps, const Seed& seed,
                                     const std::vector<Origin>& origins, const Sizes& sizes,
                                     const KernelSet& kernels) {
  std::vector<std::int64_t> begins = {0};
  for (int sample = 0; sample + 1 < batch; ++sample) {
    const auto before = fired_before(shape, seed, origins[static_cast<std::size_t>(sample)],
                                     static_cast<std::uint32_t>(sample), steps, 1, kernels);
    begins.push_back(begins.back() + before.back() * sizes.outputs());
  }
  return begins;
}

template <>
const Operations<float, float>& operations_of(const KernelSet& kernels) {
  return kernels.single;
}
template <>
const Operations<float, Half>& operations_of(const KernelSet& kernels) {
  return kernels.half;
}
template <>
const Operations<double, double>& operations_of(const KernelSet& kernels) {
  if (kernels.float64 != nullptr) return *kernels.float64;
  return *find_kernels("plain")->float64;
}

template class PackedWeights<float>;
template class PackedWeights<double>;
template class PackedMap<float>;
template class PackedMap<double>;
template class Workspace<float>;
template class Workspace<double>;

}  // namespace octreenca
