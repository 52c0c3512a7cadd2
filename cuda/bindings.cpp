// The host side of the CUDA engine for Python: compile, load, launch. It knows nothing of the
// kernels but their text; what they are called with is put together in ops/cuda_kernels.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>

#include "libraries.hpp"
#include "sources.hpp"  // written by CMake

namespace py = pybind11;

namespace octreenca {
namespace {

// The kernels of one configuration on one device. Modules live as long as the process: PyTorch may
// still have work in flight that uses them.
struct LoadedModule {
  std::shared_ptr<Driver> driver;
  Driver::Context context;
  Driver::Module module;
};

struct Kernel {
  std::shared_ptr<Driver> driver;
  Driver::Context context;
  Driver::Function function;
  int threads, shared;

  void launch(std::int64_t blocks, std::uintptr_t stream, const std::string& arguments) const {
    if (blocks < 1 || blocks > 0x7FFFFFFF) {
      throw py::value_error("blocks (" + std::to_string(blocks) + ") must be 1 to 2^31 - 1");
    }
    // The driver copies the arguments before it returns.
    driver->launch(context, function, static_cast<unsigned>(blocks), threads, shared,
                   reinterpret_cast<void*>(stream), const_cast<char*>(arguments.data()));
  }
};

py::object exception(const char* name) {
  return py::reinterpret_steal<py::object>(
      PyErr_NewException((std::string("nnunet_octreenca._cuda.") + name).c_str(),
                         PyExc_Exception, nullptr));
}

}  // namespace
}  // namespace octreenca

PYBIND11_MODULE(_cuda, m) {
  using namespace octreenca;
  m.doc() = "The host side of OctreeNCA's CUDA engine: NVRTC and the driver, loaded at run time";

  // Not RuntimeErrors: nnU-Net takes those for a lack of memory and goes on without a word.
  py::register_exception<LibraryError>(m, "LibraryError", PyExc_Exception);
  py::register_exception<CompileError>(m, "CompileError", PyExc_Exception);
  static py::object driver_error = exception("DriverError");
  m.attr("DriverError") = driver_error;
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const DriverError& error) {
      py::object value = driver_error(error.what());
      value.attr("code") = error.code;
      PyErr_SetObject(driver_error.ptr(), value.ptr());
    }
  });

  m.def("sources", [] {
    py::dict files;
    for (const auto& file : kSources) files[file.name] = file.text;
    return files;
  }, "The device code: texts by file name.");

  py::class_<Nvrtc>(m, "Nvrtc")
      .def(py::init<const std::vector<std::string>&>(), py::arg("paths"),
           "Load libraries by path: what NVRTC needs first, itself last.")
      .def("version", &Nvrtc::version)
      .def("architectures", &Nvrtc::architectures)
      .def("compile",
           [](const Nvrtc& nvrtc, const std::string& source, const std::string& name,
              const std::vector<std::pair<std::string, std::string>>& headers,
              const std::vector<std::string>& options) {
             Nvrtc::Compiled compiled;
             {
               py::gil_scoped_release release;
               compiled = nvrtc.compile(source, name, headers, options);
             }
             return py::make_tuple(py::bytes(compiled.cubin), compiled.log);
           },
           py::arg("source"), py::arg("name"), py::arg("headers"), py::arg("options"),
           "Compile for a real architecture; returns the code and the compiler's log.");

  py::class_<Driver, std::shared_ptr<Driver>>(m, "Driver")
      .def(py::init<const std::string&>(), py::arg("path"))
      .def("load",
           [](std::shared_ptr<Driver> driver, int device, const py::bytes& cubin) {
             const std::string code = cubin;
             const auto context = driver->retain(device);
             return LoadedModule{driver, context, driver->load(context, code)};
           },
           py::arg("device"), py::arg("cubin"), "Compiled kernels on a device.");

  py::class_<LoadedModule>(m, "Module")
      .def("kernel",
           [](const LoadedModule& m, const std::string& name, int threads, int shared) {
             return Kernel{m.driver, m.context,
                           m.driver->function(m.context, m.module, name, shared), threads, shared};
           },
           py::arg("name"), py::arg("threads"), py::arg("shared"),
           "A kernel, to be launched in blocks of `threads` with `shared` bytes of memory.");

  py::class_<Kernel>(m, "Kernel")
      .def_readonly("threads", &Kernel::threads)
      .def_readonly("shared", &Kernel::shared)
      .def("resident_blocks",
           [](const Kernel& k) {
             return k.driver->blocks(k.context, k.function, k.threads, k.shared);
           }, "Blocks that one multiprocessor holds at a time.")
      .def("launch",
           [](const Kernel& kernel, std::int64_t blocks, std::uintptr_t stream,
              const py::bytes& arguments) { kernel.launch(blocks, stream, arguments); },
           py::arg("blocks"), py::arg("stream"), py::arg("arguments"),
           "Start it on a stream; `arguments` are the bytes of the kernel's one argument.");
}
