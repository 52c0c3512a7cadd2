// What both files of bindings share: NumPy views and their checks.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "steps.hpp"

namespace octreenca {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;
template <class T>
using WeightArrays = std::array<Array<T>, 5>;
using Coordinates = std::vector<std::vector<std::int64_t>>;

[[noreturn]] inline void refuse(const std::string& sentence) {
  throw std::invalid_argument(sentence);
}

// What the kernels count in 32 bits, and what no plan comes near to.
constexpr py::ssize_t kMostChannels = 8192, kMostHidden = 65536;
constexpr int kMostSteps = 1 << 20, kMostThreads = 4096;
constexpr std::size_t kMostLevels = 32;
// Numbers of one array: their bytes can be counted in 64 bits, with room for padding.
constexpr std::int64_t kMostNumbers = std::int64_t{1} << 56;

// The product of counts that are at least 0.
inline std::int64_t product(std::initializer_list<std::int64_t> counts, const char* of) {
  std::int64_t total = 1;
  for (const std::int64_t count : counts) {
    if (count == 0) return 0;
  }
  for (const std::int64_t count : counts) {
    if (count < 0 || total > kMostNumbers / count) {
      refuse(std::string(of) + " would need more memory than can be addressed");
    }
    total *= count;
  }
  return total;
}

// An array of numbers that can be read where it lies.
inline void expect_aligned(const py::array& array, const char* name) {
  const auto size = static_cast<std::uintptr_t>(array.itemsize());
  if (reinterpret_cast<std::uintptr_t>(array.data()) % size != 0) {
    refuse(std::string(name) + " does not begin at a multiple of its numbers' size; give a copy");
  }
}

// From one number to the next along an axis, in numbers: negative and zero are fine.
inline std::int64_t stride_of(const py::array& array, py::ssize_t axis, const char* name) {
  if (array.shape(axis) < 2) return 0;  // NumPy may say anything
  const py::ssize_t bytes = array.strides(axis), size = array.itemsize();
  if (bytes % size != 0) {
    refuse(std::string(name) + " has a stride of " + std::to_string(bytes) + " bytes along axis " +
           std::to_string(axis) + ", which is no multiple of its numbers' " +
           std::to_string(size) + "; give a copy");
  }
  return bytes / size;
}

template <class T>
void expect(const Array<T>& array, const std::vector<py::ssize_t>& shape, const char* name) {
  if (std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()) != shape) {
    refuse(std::string(name) + " has a shape that does not fit");
  }
  expect_aligned(array, name);
}

template <class T>
RawWeights<T> raw_weights(const WeightArrays<T>& arrays) {
  const auto& [perceive, perceive_bias, hidden, hidden_bias, update] = arrays;
  const int dimension = static_cast<int>(perceive.ndim()) - 1;
  if ((dimension != 2 && dimension != 3) || hidden.ndim() != 2 || update.ndim() != 2) {
    refuse("the weights' axes do not fit");
  }
  const auto C = perceive.shape(0), H = hidden.shape(0), changing = update.shape(0);
  if (C > kMostChannels || H > kMostHidden) {
    refuse(std::to_string(C) + " channels and " + std::to_string(H) + " hidden units are more than "
           "the engine computes with: " + std::to_string(kMostChannels) + " and " +
           std::to_string(kMostHidden));
  }
  std::vector<py::ssize_t> kernel(static_cast<std::size_t>(dimension) + 1, 3);
  kernel[0] = C;
  expect(perceive, kernel, "perceive_weight");
  expect(perceive_bias, {C}, "perceive_bias");
  expect(hidden, {H, 2 * C}, "hidden_weight");
  expect(hidden_bias, {H}, "hidden_bias");
  expect(update, {changing, H}, "update_weight");
  if (changing < 1 || changing > C || H < 1) refuse("update_weight has a shape that does not fit");
  return {dimension,         static_cast<int>(C), static_cast<int>(C - changing),
          static_cast<int>(H), perceive.data(),     perceive_bias.data(),
          hidden.data(),     hidden_bias.data(),  update.data()};
}

// Cells of a slice are numbered in 32 bits, and the states of all cells must have an address.
inline Shape checked(const Shape& shape, std::int64_t channels) {
  product({shape.depth, shape.height, shape.width, channels}, "a state of these axes");
  if (product({shape.slice_height(), shape.width}, "a slice of these axes") >=
      std::int64_t{std::numeric_limits<std::uint32_t>::max()} - kChunk) {
    refuse("a slice of " + std::to_string(shape.slice_height()) + " x " +
           std::to_string(shape.width) + " cells is more than the engine computes with: 2^32");
  }
  return shape;
}

inline Shape shape_of(const py::array& array, int dimension, py::ssize_t first_axis,
                      std::int64_t channels) {
  const auto at = [&](int axis) {
    return static_cast<std::int64_t>(array.shape(first_axis + axis));
  };
  return checked(dimension == 2 ? Shape{2, 1, at(0), at(1)} : Shape{3, at(0), at(1), at(2)},
                 channels);
}

inline Shape shape_of(const std::vector<std::int64_t>& shape, std::int64_t channels) {
  if (shape.size() != 2 && shape.size() != 3) refuse("shape must have two or three axes");
  for (const auto cells : shape) {
    if (cells < 1) refuse("every axis needs at least one cell, got " + std::to_string(cells));
  }
  return checked(shape.size() == 2 ? Shape{2, 1, shape[0], shape[1]}
                                   : Shape{3, shape[0], shape[1], shape[2]},
                 channels);
}

inline std::vector<Origin> origins_of(const Coordinates& rows, std::size_t batch, int dimension) {
  if (rows.size() != batch) refuse("there must be one origin a sample");
  std::vector<Origin> origins;
  for (const auto& row : rows) {
    if (row.size() != static_cast<std::size_t>(dimension)) refuse("an origin has a wrong length");
    const auto at = [&](std::size_t axis) { return static_cast<std::uint32_t>(row[axis]); };
    origins.push_back(dimension == 2 ? Origin{0, at(0), at(1)} : Origin{at(0), at(1), at(2)});
  }
  return origins;
}

inline void check_threads(int threads) {
  if (threads < 1 || threads > kMostThreads) {
    refuse("threads must be 1 to " + std::to_string(kMostThreads) + ", got " +
           std::to_string(threads));
  }
}

inline Options options_of(const std::string& kernels, int threads, const std::string& schedule,
                          bool bf16, bool count_non_finite) {
  const KernelSet* set = find_kernels(kernels.c_str());
  if (set == nullptr) refuse("no kernels '" + kernels + "' on this machine");
  check_threads(threads);
  if (schedule != "auto" && schedule != "sweep" && schedule != "wavefront") {
    refuse("schedule '" + schedule + "' must be auto, sweep or wavefront");
  }
  return {set, threads,
          schedule == "sweep"       ? Schedule::kSweep
          : schedule == "wavefront" ? Schedule::kWavefront
                                    : Schedule::kAuto,
          bf16,
          count_non_finite};
}

inline void check_steps(int steps) {
  if (steps < 0 || steps > kMostSteps) {
    refuse("steps must be 0 to " + std::to_string(kMostSteps) + ", got " + std::to_string(steps));
  }
}

inline void check_draws(int steps, std::uint64_t threshold) {
  check_steps(steps);
  if (threshold > kCertain) refuse("threshold must be at most 2^32");
}

void define_octree(py::module_& m);    // octree_bindings.cpp
void define_training(py::module_& m);  // training_bindings.cpp

}  // namespace octreenca
