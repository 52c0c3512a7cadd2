// What both files of bindings share: NumPy views and their checks.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
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

template <class T>
void expect(const Array<T>& array, const std::vector<py::ssize_t>& shape, const char* name) {
  if (std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()) != shape) {
    refuse(std::string(name) + " has a shape that does not fit");
  }
}

template <class T>
RawWeights<T> raw_weights(const WeightArrays<T>& arrays) {
  const auto& [perceive, perceive_bias, hidden, hidden_bias, update] = arrays;
  const int dimension = static_cast<int>(perceive.ndim()) - 1;
  if ((dimension != 2 && dimension != 3) || hidden.ndim() != 2 || update.ndim() != 2) {
    refuse("the weights' axes do not fit");
  }
  const auto C = perceive.shape(0), H = hidden.shape(0), changing = update.shape(0);
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

inline Shape shape_of(const py::array& array, int dimension, py::ssize_t first_axis) {
  const auto at = [&](int axis) {
    return static_cast<std::int64_t>(array.shape(first_axis + axis));
  };
  if (dimension == 2) return {2, 1, at(0), at(1)};
  return {3, at(0), at(1), at(2)};
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

inline Options options_of(const std::string& kernels, int threads, const std::string& schedule,
                          bool bf16) {
  const KernelSet* set = find_kernels(kernels.c_str());
  if (set == nullptr) refuse("no kernels '" + kernels + "' on this machine");
  if (threads < 1) refuse("threads must be at least 1");
  if (schedule != "auto" && schedule != "sweep" && schedule != "wavefront") {
    refuse("schedule '" + schedule + "' must be auto, sweep or wavefront");
  }
  return {set, threads,
          schedule == "sweep"       ? Schedule::kSweep
          : schedule == "wavefront" ? Schedule::kWavefront
                                    : Schedule::kAuto,
          bf16};
}

inline void check_draws(int steps, std::uint64_t threshold) {
  if (steps < 0) refuse("steps must be at least 0");
  if (threshold > kCertain) refuse("threshold must be at most 2^32");
}

void define_octree(py::module_& m);  // octree_bindings.cpp

}  // namespace octreenca
