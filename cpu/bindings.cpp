// Python bindings of the CPU engine. Thin: NumPy views in, nothing of PyTorch. Shapes are checked
// here, so that no call can read or write beyond an array; what they mean is said in ops/.
#include "bindings.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "fire.hpp"
#include "steps.hpp"
#include "threads.hpp"

using namespace octreenca;

namespace {

// What forward and backward take alike.
template <class T>
struct Level {
  Level(const Array<T>& state, const WeightArrays<T>& weights, int steps, std::uint64_t seed,
        std::uint32_t level, std::uint64_t threshold, const Coordinates& origin_rows)
      : raw(raw_weights(weights)), draws{seed, level, threshold} {
    check_draws(steps, threshold);
    if (state.ndim() != raw.dimension + 2 || state.shape(raw.dimension + 1) != raw.channels) {
      refuse("state must be (samples, axes, channels)");
    }
    expect_aligned(state, "state");
    shape = shape_of(state, raw.dimension, 1, raw.channels);
    if (state.shape(0) > std::numeric_limits<int>::max()) refuse("too many samples");
    batch = static_cast<int>(state.shape(0));
    origins = origins_of(origin_rows, static_cast<std::size_t>(batch), raw.dimension);
    log_size = product({steps, batch, shape.cells(), raw.channels - raw.inputs}, "the log");
  }
  void check_log(const Array<T>& log) const {
    expect_aligned(log, "log");
    if (log.size() < log_size) {
      refuse("log has " + std::to_string(log.size()) + " numbers and needs " +
             std::to_string(log_size));
    }
  }
  RawWeights<T> raw;
  Seed draws;
  Shape shape{};
  int batch = 0;
  std::vector<Origin> origins;
  py::ssize_t log_size = 0;
};

template <class T>
void py_steps_forward(Array<T>& state, const WeightArrays<T>& weights, int steps,
                      std::uint64_t seed, std::uint32_t level, std::uint64_t threshold,
                      const Coordinates& origins, std::optional<Array<T>> log,
                      const std::string& kernels, int threads, const std::string& schedule,
                      bool bf16) {
  const Level<T> at(state, weights, steps, seed, level, threshold, origins);
  const Options options = options_of(kernels, threads, schedule, bf16, false);
  if (log) at.check_log(*log);
  if (state.size() == 0) return;
  T* data = state.mutable_data();
  T* log_data = log ? log->mutable_data() : nullptr;
  py::gil_scoped_release release;
  steps_forward<T>(at.raw, at.shape, at.batch, data, steps, at.draws, at.origins, log_data,
                   options);
}

template <class T>
void py_steps_backward(Array<T>& state, Array<T>& log, Array<T>& gradient,
                       const WeightArrays<T>& weights, WeightArrays<T>& gradients, int steps,
                       std::uint64_t seed, std::uint32_t level, std::uint64_t threshold,
                       const Coordinates& origins, const std::string& kernels, int threads,
                       bool restore) {
  const Level<T> at(state, weights, steps, seed, level, threshold, origins);
  const Options options = options_of(kernels, threads, "auto", false, false);
  at.check_log(log);
  expect(gradient, {state.shape(), state.shape() + state.ndim()}, "gradient");
  raw_weights(gradients);
  for (std::size_t i = 0; i < 5; ++i) {
    expect(gradients[i], {weights[i].shape(), weights[i].shape() + weights[i].ndim()}, "gradients");
  }
  T* data = state.mutable_data();
  T* log_data = log.mutable_data();
  T* gradient_data = gradient.mutable_data();
  if (state.size() == 0) return;
  const WeightGradients<T> sums = {gradients[0].mutable_data(), gradients[1].mutable_data(),
                                   gradients[2].mutable_data(), gradients[3].mutable_data(),
                                   gradients[4].mutable_data()};
  py::gil_scoped_release release;
  steps_backward<T>(at.raw, at.shape, at.batch, data, log_data, restore, gradient_data, steps, at.draws,
                    at.origins, sums, options);
}

// PyTorch's own copy would use its OpenMP threads, which a forked worker waits for in vain.
template <class T>
void py_copy(const py::array_t<T>& source, Array<T>& target, int threads) {
  const py::ssize_t axes = target.ndim();
  if (axes < 2 || source.ndim() != axes) refuse("source and target must have the same axes");
  expect(target, {source.shape(), source.shape() + axes}, "target");
  check_threads(threads);
  expect_aligned(source, "source");
  const std::vector<py::ssize_t> shape(target.shape(), target.shape() + axes);
  std::vector<py::ssize_t> strides;
  for (py::ssize_t axis = 0; axis < axes; ++axis) strides.push_back(stride_of(source, axis, "source"));
  if (target.size() == 0) return;
  const py::ssize_t columns = shape.back(), step = strides.back();
  const py::ssize_t lines = shape[shape.size() - 2], line_step = strides[strides.size() - 2];
  const T* from = source.data();
  T* to = target.mutable_data();
  const bool parallel = target.size() > 65536;
  py::gil_scoped_release release;
  for_each(parallel ? threads : 1, target.size() / (lines * columns), [&](std::int64_t block) {
    py::ssize_t offset = 0, rest = block;
    for (std::size_t axis = shape.size() - 2; axis-- > 0;) {
      offset += rest % shape[axis] * strides[axis];
      rest /= shape[axis];
    }
    T* block_to = to + block * lines * columns;
    if (step == 1) {
      for (py::ssize_t line = 0; line < lines; ++line) {
        std::copy_n(from + offset + line * line_step, columns, block_to + line * columns);
      }
    } else {  // channels-first: read along the lines
      for (py::ssize_t column = 0; column < columns; ++column) {
        const T* line_from = from + offset + column * step;
        for (py::ssize_t line = 0; line < lines; ++line) {
          block_to[line * columns + column] = line_from[line * line_step];
        }
      }
    }
  });
}

using Mask = Array<std::uint8_t>;

void py_fire_mask(Mask& fired, std::uint32_t key, std::uint64_t threshold, std::uint32_t z0,
                  std::uint32_t y0, std::uint32_t x0, int threads) {
  if (fired.ndim() != 3) {
    refuse("fired must be (depth, height, width), got " + std::to_string(fired.ndim()) + " axes");
  }
  if (threshold == 0 || threshold >= kCertain) {
    refuse("threshold must be within 1 and 2^32 - 1, got " + std::to_string(threshold));
  }
  check_threads(threads);
  std::uint8_t* data = fired.mutable_data();
  if (fired.size() == 0) return;
  const std::int64_t depth = fired.shape(0), height = fired.shape(1), width = fired.shape(2);
  py::gil_scoped_release release;
  // A thread costs some 20 us to start, a cell 0.5 ns to draw.
  const bool parallel = depth * height * width > 65536;
  for_each(parallel ? threads : 1, depth * height, [&](std::int64_t row) {
    fire_row(data + row * width, width, key, z0 + static_cast<std::uint32_t>(row / height),
             y0 + static_cast<std::uint32_t>(row % height), x0, threshold);
  });
}

std::vector<std::string> py_kernels() {
  const KernelSet* sets[8];
  const int count = available_kernels(sets, 8);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.emplace_back(sets[i]->name);
  return names;
}

std::int64_t py_ring_slots(const std::vector<std::int64_t>& shape, int steps) {
  check_steps(steps);
  return ring_slots(shape_of(shape, 1), steps);
}

double py_burn(const std::string& kernels, int threads, std::int64_t iterations) {
  const Options options = options_of(kernels, threads, "auto", false, false);
  if (iterations < 0) refuse("iterations must be at least 0, got " + std::to_string(iterations));
  std::vector<double> operations(static_cast<std::size_t>(threads), 0.0);
  py::gil_scoped_release release;
  Team::run(threads, [&](int index, Team&) {
    float sink[2] = {0.5f, 0.25f};
    operations[static_cast<std::size_t>(index)] = options.kernels->burn(iterations, sink);
  });
  double total = 0;
  for (const double part : operations) total += part;
  return total;
}

template <class T>
void define_steps(py::module_& m) {
  m.def("copy", &py_copy<T>, py::arg("source").noconvert(), py::arg("target").noconvert(),
        py::arg("threads"), "Copy a view of any strides into a contiguous array.");
  m.def("steps_forward", &py_steps_forward<T>, py::arg("state").noconvert(),
        py::arg("weights").noconvert(), py::arg("steps"), py::arg("seed"), py::arg("level"),
        py::arg("threshold"),
        py::arg("origins"), py::arg("log").noconvert().none(true), py::arg("kernels"),
        py::arg("threads"), py::arg("schedule"), py::arg("bf16"),
        "Run the steps in place; `state` is (samples, axes, channels).");
  m.def("steps_backward", &py_steps_backward<T>, py::arg("state").noconvert(),
        py::arg("log").noconvert(), py::arg("gradient").noconvert(),
        py::arg("weights").noconvert(),
        py::arg("gradients").noconvert(), py::arg("steps"), py::arg("seed"), py::arg("level"),
        py::arg("threshold"), py::arg("origins"), py::arg("kernels"), py::arg("threads"),
        py::arg("restore"),
        "Gradients of steps_forward: `gradient` in place, the weights' added to `gradients`; "
        "`state` and `log` are used up unless they are to be restored.");
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "OctreeNCA's CPU engine";
  define_steps<float>(m);
  define_steps<double>(m);
  define_octree(m);
  define_training(m);
  m.def("fire_mask", &py_fire_mask, py::arg("fired").noconvert(), py::arg("key"),
        py::arg("threshold"), py::arg("z0"), py::arg("y0"), py::arg("x0"), py::arg("threads"),
        "Fill `fired` (depth, height, width; uint8) with 1 where a cell fires, else 0.");
  m.def("kernels", &py_kernels, "Names of the kernels this processor runs, the fastest first.");
  m.def("native_bf16", [](const std::string& kernels) {
    return options_of(kernels, 1, "auto", false, false).kernels->native_bf16;
  }, py::arg("kernels"), "Whether the processor multiplies bfloat16 itself.");
  m.def("lanes", [](const std::string& kernels) {
    return options_of(kernels, 1, "auto", false, false).kernels->single.lanes;
  }, py::arg("kernels"), "Floats of a vector; a state's channels are padded to whole vectors.");
  m.def("ring_slots", &py_ring_slots, py::arg("shape"), py::arg("steps"),
        "Rows (2-D) or planes (3-D) of a level that a wavefront keeps.");
  m.def("burn", &py_burn, py::arg("kernels"), py::arg("threads"), py::arg("iterations"),
        "Multiply and add in registers; returns the number of floating point operations.");
}
