// Python bindings of the CPU engine. Thin: buffers and sizes in, nothing of torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "fire.hpp"

namespace py = pybind11;

namespace {

using Mask = py::array_t<std::uint8_t, py::array::c_style>;

void fire_mask(Mask& fired, std::uint32_t key, std::uint64_t threshold, std::uint32_t z0,
               std::uint32_t y0, std::uint32_t x0, int threads) {
  if (fired.ndim() != 3) {
    throw std::invalid_argument("fired must be (depth, height, width), got " +
                                std::to_string(fired.ndim()) + " axes");
  }
  if (threshold == 0 || threshold >> 32 != 0) {
    throw std::invalid_argument("threshold must be within 1 and 2^32 - 1, got " +
                                std::to_string(threshold));
  }
  std::uint8_t* data = fired.mutable_data();
  const auto depth = fired.shape(0), height = fired.shape(1), width = fired.shape(2);
  py::gil_scoped_release release;
  octreenca::fire_mask(data, depth, height, width, key, static_cast<std::uint32_t>(threshold), z0,
                       y0, x0, threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "OctreeNCA's CPU engine";
  m.def("fire_mask", &fire_mask, py::arg("fired").noconvert(), py::arg("key"),
        py::arg("threshold"), py::arg("z0"), py::arg("y0"), py::arg("x0"), py::arg("threads"),
        "Fill `fired` (depth, height, width; uint8) with 1 where a cell fires, else 0.");
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
}
