// Runs the engine on stored cases and compares with what the PyTorch engine stored: without
// Python, so that sanitizers see every access, and on processors that are only emulated.
//
//   replay CASES          exit code 1 if anything differs
//   replay --pass 960     one pass over a random RGB image of 960 x 960, one thread
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "../../cpu/half.hpp"
#include "../../cpu/octree.hpp"
#include "../../cpu/steps.hpp"

namespace octreenca {
extern const KernelSet kernels_wide;
}

using namespace octreenca;

namespace {

int failures = 0;

void check(bool right, const std::string& what, double value = 0) {
  if (right) return;
  ++failures;
  std::printf("WRONG %s (%g)\n", what.c_str(), value);
}

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {
    if (!file_) {
      std::printf("cannot read %s\n", path);
      std::exit(2);
    }
  }
  std::int64_t number() {
    std::int64_t value;
    file_.read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }
  std::vector<float> array() {
    std::vector<float> values(static_cast<std::size_t>(number()));
    file_.read(reinterpret_cast<char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(float)));
    return values;
  }

 private:
  std::ifstream file_;
};

double difference(const std::vector<float>& result, const std::vector<float>& expected) {
  if (result.size() != expected.size()) return 1e30;
  double worst = 0, largest = 1e-30;
  for (std::size_t i = 0; i < result.size(); ++i) {
    if (!std::isfinite(result[i])) return 1e30;
    worst = std::max(worst, std::fabs(double(result[i]) - double(expected[i])));
    largest = std::max(largest, std::fabs(double(expected[i])));
  }
  return worst / largest;
}

std::vector<const KernelSet*> all_kernels() {
  const KernelSet* sets[8];
  const int count = available_kernels(sets, 8);
  std::vector<const KernelSet*> all(sets, sets + count);
  all.push_back(&kernels_wide);
  return all;
}

struct StoredWeights {
  int dimension, channels, inputs, hidden;
  std::vector<float> arrays[5];

  StoredWeights() = default;
  explicit StoredWeights(Reader& from) {
    dimension = static_cast<int>(from.number());
    channels = static_cast<int>(from.number());
    inputs = static_cast<int>(from.number());
    hidden = static_cast<int>(from.number());
    for (auto& array : arrays) array = from.array();
  }
  RawWeights<float> raw() const {
    return {dimension,        channels,         inputs,           hidden,          arrays[0].data(),
            arrays[1].data(), arrays[2].data(), arrays[3].data(), arrays[4].data()};
  }
};

Shape read_shape(Reader& from, int dimension) {
  Shape shape{dimension, 0, 0, 0};
  shape.depth = from.number();
  shape.height = from.number();
  shape.width = from.number();
  return shape;
}

void replay_steps(Reader& from, int number) {
  const StoredWeights weights(from);
  const Shape shape = read_shape(from, weights.dimension);
  const int batch = static_cast<int>(from.number()), steps = static_cast<int>(from.number());
  const auto seed = static_cast<std::uint64_t>(from.number());
  const auto level = static_cast<std::uint32_t>(from.number());
  const auto threshold = static_cast<std::uint64_t>(from.number());
  std::vector<Origin> origins;
  for (int s = 0; s < batch; ++s) {
    const auto z = static_cast<std::uint32_t>(from.number());
    const auto y = static_cast<std::uint32_t>(from.number());
    const auto x = static_cast<std::uint32_t>(from.number());
    origins.push_back({z, y, x});
  }
  const auto state = from.array(), grad_out = from.array(), expected = from.array(),
             expected_grad = from.array();
  std::vector<float> expected_grads[5];
  for (auto& array : expected_grads) array = from.array();

  const Seed draws = {seed, level, threshold};
  const std::size_t log_size = static_cast<std::size_t>(steps * batch * shape.cells() *
                                                        (weights.channels - weights.inputs));
  for (const KernelSet* kernels : all_kernels()) {
    const std::string name = "case " + std::to_string(number) + ", " + kernels->name;
    std::vector<float> first;
    for (int threads = 1; threads <= 3; ++threads) {
      for (const Schedule schedule : {Schedule::kSweep, Schedule::kWavefront}) {
        const Options options = {kernels, threads, schedule, false};
        std::vector<float> out = state, log(log_size, 0.0f);
        steps_forward<float>(weights.raw(), shape, batch, out.data(), steps, draws, origins,
                             log.data(), options);
        if (first.empty()) first = out;
        check(out == first, name + ": other bits with other threads or order");
        const double off = difference(out, expected);
        check(off < 1e-5, name + ": forward", off);

        const std::vector<float> before = out;
        std::vector<float> gradient = grad_out, grads[5];
        for (int i = 0; i < 5; ++i) grads[i].assign(weights.arrays[i].size(), 0.0f);
        steps_backward<float>(
            weights.raw(), shape, batch, out.data(), log.data(), true, gradient.data(), steps, draws,
            origins,
            {grads[0].data(), grads[1].data(), grads[2].data(), grads[3].data(), grads[4].data()},
            options);
        check(out == before, name + ": the state was not restored");
        const double grad_off = difference(gradient, expected_grad);
        check(grad_off < 1e-4, name + ": gradient", grad_off);
        for (int i = 0; i < 5; ++i) {
          const double weight_off = difference(grads[i], expected_grads[i]);
          check(weight_off < 1e-4, name + ": gradient of weight " + std::to_string(i), weight_off);
        }
      }
    }
  }
}

void replay_octree(Reader& from, int number) {
  const auto count = static_cast<std::size_t>(from.number());
  std::vector<StoredWeights> weights;
  std::vector<OctreeLevel> levels(count);
  for (std::size_t i = 0; i < count; ++i) weights.emplace_back(from);
  for (std::size_t i = 0; i < count; ++i) {
    levels[i].weights = weights[i].raw();
    levels[i].steps = static_cast<int>(from.number());
    for (int& factor : levels[i].factor) factor = static_cast<int>(from.number());
  }
  std::vector<std::vector<float>> maps;  // empty where channels are copied
  for (std::size_t i = 0; i + 1 < count; ++i) {
    maps.push_back(from.array());
    if (!maps[i].empty()) levels[i].from_parent = maps[i].data();
  }
  const Shape shape = read_shape(from, weights[0].dimension);
  const auto seed = static_cast<std::uint64_t>(from.number());
  const auto threshold = static_cast<std::uint64_t>(from.number());
  const int logits = static_cast<int>(from.number());
  const bool background = from.number() != 0;
  const auto pixels = from.array(), expected = from.array();
  const Image image = {pixels.data(),   weights[0].inputs, shape.cells(),
                       shape.height * shape.width, shape.width,       1};

  for (const KernelSet* kernels : all_kernels()) {
    const std::string name = "case " + std::to_string(number) + ", octree, " + kernels->name;
    std::vector<float> first;
    for (const int threads : {1, 3, 14}) {
      for (const Schedule schedule : {Schedule::kSweep, Schedule::kWavefront}) {
        Options options = {kernels, threads, schedule, false};
        std::vector<float> values(expected.size(), 0.0f);
        const Output to_values = {logits, background, nullptr, 0, values.data()};
        const auto counts =
            octree_forward<float>(image, shape, levels, seed, threshold, 0, to_values, options);
        check(counts[0].cells == 0 && counts[0].of == shape.cells(), name + ": cells counted");
        if (first.empty()) first = values;
        check(values == first, name + ": other bits with other threads or order");
        const double off = difference(values, expected);
        check(off < 1e-5, name, off);

        std::vector<std::uint8_t> labels(static_cast<std::size_t>(shape.cells()), 255);
        const Output to_labels = {logits, background, labels.data(), 1, nullptr};
        octree_forward<float>(image, shape, levels, seed, threshold, 0, to_labels, options);
        const auto cells = static_cast<std::size_t>(shape.cells());
        bool right = true;
        for (std::size_t i = 0; i < cells; ++i) {
          std::size_t best = 0;
          for (std::size_t k = 1; k * cells < values.size(); ++k) {
            if (values[k * cells + i] > values[best * cells + i]) best = k;
          }
          right = right && labels[i] == best;
        }
        check(right, name + ": labels are not the largest logits");

        // Lower precisions stay near; tests/ops/test_cpu_octree.py compares them exactly.
        octree_forward<Half>(image, shape, levels, seed, threshold, 0, to_values, options);
        check(difference(values, expected) < 0.05, name + ": float16 states");
        options.bf16 = true;
        octree_forward<float>(image, shape, levels, seed, threshold, 0, to_values, options);
        check(difference(values, expected) < 0.1, name + ": bfloat16 products");
      }
    }
  }
}

// Every float16 there is, to float and back; and what lies between two of them.
void check_half() {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = half_to_float(half);
    if ((half & 0x7FFFu) > 0x7C00u) {
      check(std::isnan(value) && std::isnan(half_to_float(float_to_half(value))), "float16 NaN");
      continue;
    }
    check(float_to_half(value) == half, "float16 there and back", bits);
    if ((half & 0x7FFFu) >= 0x7BFFu) continue;
    const auto next = static_cast<std::uint16_t>(half + 1);
    const float middle = 0.5f * (value + half_to_float(next));
    const std::uint16_t even = half & 1u ? next : half;
    check(float_to_half(middle) == even, "float16 tie", bits);
    check(float_to_half(std::nextafterf(middle, value)) == half, "float16 below a tie", bits);
  }
  check(float_to_half(1e6f) == 0x7C00u && float_to_half(65520.0f) == 0x7C00u, "float16 overflow");
  check(float_to_half(65519.0f) == 0x7BFFu, "largest float16");
}

// NaN and both infinities, in every channel of a cell and beside the largest finite numbers.
template <class S>
void check_non_finite(const KernelSet& kernels, S ordinary, S largest, const std::vector<S>& bad) {
  const auto& operations = operations_of<float, S>(kernels);
  const std::string name = std::string("cells that are not finite, ") + kernels.name;
  for (const int vectors : {1, 2, 3, 5}) {
    Sizes sizes{};
    sizes.padded_channels = vectors * operations.lanes;
    const std::int64_t cells = 11;
    const auto count = static_cast<std::size_t>(cells * sizes.padded_channels);
    std::vector<S> state(count, ordinary);
    for (std::size_t i = 0; i < count; i += 3) state[i] = largest;
    check(operations.non_finite(sizes, cells, state.data()) == 0, name + ": none");
    for (int channel = 0; channel < sizes.padded_channels; ++channel) {
      std::vector<S> wrong = state;
      for (std::size_t i = 0; i < bad.size(); ++i) {
        const std::size_t cell = 10 - 4 * i;
        wrong[cell * static_cast<std::size_t>(sizes.padded_channels) +
              static_cast<std::size_t>(channel)] = bad[i];
      }
      const std::int64_t found = operations.non_finite(sizes, cells, wrong.data());
      check(found == static_cast<std::int64_t>(bad.size()), name, static_cast<double>(found));
    }
  }
}

int one_pass(int size) {
  std::vector<StoredWeights> weights(5);
  std::vector<OctreeLevel> levels(5);
  std::uint32_t random = 1;
  const auto draw = [&](double scale) {
    random = random * 1664525u + 1013904223u;
    return static_cast<float>((random / 4294967296.0 - 0.5) * scale);
  };
  for (std::size_t i = 0; i < 5; ++i) {
    StoredWeights& level = weights[i];
    level.dimension = 2, level.channels = 16, level.inputs = 3, level.hidden = 64;
    const std::size_t sizes[] = {144, 16, 2048, 64, 832};
    for (int a = 0; a < 5; ++a) {
      for (std::size_t n = 0; n < sizes[a]; ++n) level.arrays[a].push_back(draw(0.2));
    }
    levels[i] = {level.raw(), 10, {1, 2, 2}, nullptr};
  }
  levels[4].steps = (size + 15) / 16;
  std::vector<float> pixels(static_cast<std::size_t>(3 * size * size));
  for (auto& pixel : pixels) pixel = draw(2);
  std::vector<std::uint8_t> labels(static_cast<std::size_t>(size * size));
  const Shape shape = {2, 1, size, size};
  const Image image = {pixels.data(), 3, shape.cells(), 0, size, 1};
  const KernelSet* sets[8];
  available_kernels(sets, 8);
  octree_forward<float>(image, shape, levels, 0, std::uint64_t{1} << 31, 0,
                        {1, true, labels.data(), 1, nullptr},
                        {sets[0], 1, Schedule::kAuto, false});
  std::printf("%s kernels, %ld foreground pixels\n", sets[0]->name,
              static_cast<long>(std::count(labels.begin(), labels.end(), 1)));
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 3 && std::strcmp(arguments[1], "--pass") == 0) return one_pass(std::atoi(arguments[2]));
  if (count != 2) {
    std::printf("replay CASES | replay --pass SIZE\n");
    return 2;
  }
  check_half();
  for (const KernelSet* kernels : all_kernels()) {
    check_non_finite<float>(*kernels, 1.0f, -3.4e38f, {NAN, INFINITY, -INFINITY});
    check_non_finite<Half>(*kernels, Half{0x3C00u}, Half{0xFBFFu},
                           {Half{0x7E00u}, Half{0x7C00u}, Half{0xFC00u}});
  }
  Reader from(arguments[1]);
  const std::int64_t cases = from.number();
  for (std::int64_t i = 0; i < cases; ++i) {
    (from.number() == 0 ? replay_steps : replay_octree)(from, static_cast<int>(i));
  }
  std::string names;
  for (const KernelSet* kernels : all_kernels()) names += std::string(" ") + kernels->name;
  std::printf("%ld cases with%s: %d wrong\n", static_cast<long>(cases), names.c_str(), failures);
  return failures == 0 ? 0 : 1;
}
