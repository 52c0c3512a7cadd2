#include "libraries.hpp"

#include <dlfcn.h>

#include <utility>

namespace octreenca {

namespace {

void* open(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw LibraryError(dlerror());
  return library;
}

template <class Function>
void find(void* library, const char* name, Function& function) {
  void* address = dlsym(library, name);
  if (address == nullptr) throw LibraryError(std::string("it has no function ") + name);
  function = reinterpret_cast<Function>(address);
}

}  // namespace

Nvrtc::Nvrtc(const std::vector<std::string>& paths) {
  if (paths.empty()) throw LibraryError("no path of NVRTC");
  void* library = nullptr;
  for (const std::string& path : paths) library = open(path);
  find(library, "nvrtcVersion", version_);
  find(library, "nvrtcGetNumSupportedArchs", architecture_count_);
  find(library, "nvrtcGetSupportedArchs", architectures_);
  find(library, "nvrtcCreateProgram", create_);
  find(library, "nvrtcCompileProgram", compile_);
  find(library, "nvrtcGetCUBINSize", cubin_size_);
  find(library, "nvrtcGetCUBIN", cubin_);
  find(library, "nvrtcGetProgramLogSize", log_size_);
  find(library, "nvrtcGetProgramLog", log_);
  find(library, "nvrtcDestroyProgram", destroy_);
  find(library, "nvrtcGetErrorString", error_);
}

void Nvrtc::check(int code, const char* doing) const {
  if (code != 0) throw CompileError(std::string(doing) + ": " + error_(code));
}

std::pair<int, int> Nvrtc::version() const {
  int major = 0, minor = 0;
  check(version_(&major, &minor), "asking NVRTC for its version");
  return {major, minor};
}

std::vector<int> Nvrtc::architectures() const {
  int count = 0;
  check(architecture_count_(&count), "asking NVRTC for its architectures");
  std::vector<int> result(static_cast<std::size_t>(count));
  check(architectures_(result.data()), "asking NVRTC for its architectures");
  return result;
}

Nvrtc::Compiled Nvrtc::compile(const std::string& source, const std::string& name,
                               const std::vector<std::pair<std::string, std::string>>& headers,
                               const std::vector<std::string>& options) const {
  std::vector<const char*> names, texts, flags;
  for (const auto& header : headers) {
    names.push_back(header.first.c_str());
    texts.push_back(header.second.c_str());
  }
  for (const std::string& option : options) flags.push_back(option.c_str());
  struct Owner {
    const Nvrtc& nvrtc;
    Program program = nullptr;
    ~Owner() {
      if (program != nullptr) nvrtc.destroy_(&program);
    }
  } owner{*this};
  check(create_(&owner.program, source.c_str(), name.c_str(), static_cast<int>(names.size()),
                texts.data(), names.data()),
        "handing the source to NVRTC");
  const int code = compile_(owner.program, static_cast<int>(flags.size()), flags.data());
  std::size_t size = 0;
  check(log_size_(owner.program, &size), "asking NVRTC for its log");
  Compiled result;
  result.log.resize(size);
  check(log_(owner.program, result.log.data()), "asking NVRTC for its log");
  while (!result.log.empty() && result.log.back() == '\0') result.log.pop_back();
  if (code != 0) throw CompileError(std::string(error_(code)) + "\n" + result.log);
  check(cubin_size_(owner.program, &size), "asking NVRTC for the code");
  result.cubin.resize(size);
  check(cubin_(owner.program, result.cubin.data()), "asking NVRTC for the code");
  return result;
}

// ------------------------------------------------------------------ the driver

Driver::Driver(const std::string& path) {
  void* library = open(path);
  find(library, "cuInit", init_);
  find(library, "cuDeviceGet", device_);
  find(library, "cuDevicePrimaryCtxRetain", retain_);
  find(library, "cuCtxPushCurrent_v2", push_);
  find(library, "cuCtxPopCurrent_v2", pop_);
  find(library, "cuModuleLoadData", load_);
  find(library, "cuModuleGetFunction", function_);
  find(library, "cuFuncSetAttribute", set_attribute_);
  find(library, "cuOccupancyMaxActiveBlocksPerMultiprocessor", occupancy_);
  find(library, "cuLaunchKernel", launch_);
  find(library, "cuGetErrorName", error_name_);
  find(library, "cuGetErrorString", error_text_);
  check(init_(0), "starting the driver");
}

void Driver::check(int code, const std::string& doing) const {
  if (code == 0) return;
  const char *name = nullptr, *text = nullptr;
  error_name_(code, &name);
  error_text_(code, &text);
  throw DriverError(doing + ": " + (name ? name : "error " + std::to_string(code)) +
                        (text ? std::string(" (") + text + ")" : ""),
                    code);
}

// The context is current while this lives; the caller's is put back.
class InContext {
 public:
  InContext(const Driver& driver, Driver::Context context) : driver_(driver) {
    driver.check(driver.push_(context), "choosing the device");
  }
  ~InContext() {
    Driver::Context context;
    driver_.pop_(&context);
  }

 private:
  const Driver& driver_;
};

Driver::Context Driver::retain(int device) const {
  int handle = 0;
  Context context = nullptr;
  check(device_(&handle, device), "opening device " + std::to_string(device));
  check(retain_(&context, handle), "opening device " + std::to_string(device));
  return context;
}

Driver::Module Driver::load(Context context, const std::string& cubin) const {
  const InContext in(*this, context);
  Module module = nullptr;
  check(load_(&module, cubin.data()), "loading the compiled kernels");
  return module;
}

Driver::Function Driver::function(Context context, Module module, const std::string& name,
                                  int shared) const {
  constexpr int kMaxDynamicSharedBytes = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
  constexpr int kSharedCarveout = 9;  // CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
  constexpr int kMostShared = 100;    // CU_SHAREDMEM_CARVEOUT_MAX_SHARED
  const InContext in(*this, context);
  Function function = nullptr;
  check(function_(&function, module, name.c_str()), "looking for the kernel " + name);
  if (shared > 0) {
    check(set_attribute_(function, kMaxDynamicSharedBytes, shared),
          "asking for " + std::to_string(shared) + " bytes of shared memory for the kernel " + name);
    // Tiles are chosen so that several blocks are resident, which takes all of the shared memory;
    // with the driver's own split between it and L1 fewer may be. A preference: without it the
    // kernel runs too.
    set_attribute_(function, kSharedCarveout, kMostShared);
  }
  return function;
}

int Driver::blocks(Context context, Function function, int threads, int shared) const {
  const InContext in(*this, context);
  int blocks = 0;
  check(occupancy_(&blocks, function, threads, static_cast<std::size_t>(shared)),
        "asking how many blocks fit");
  return blocks;
}

void Driver::launch(Context context, Function function, unsigned blocks, int threads, int shared,
                    void* stream, void* arguments) const {
  const InContext in(*this, context);
  void* list[] = {arguments};
  check(launch_(function, blocks, 1, 1, static_cast<unsigned>(threads), 1, 1,
                static_cast<unsigned>(shared), stream, list, nullptr),
        "starting a kernel of " + std::to_string(blocks) + " blocks");
}

}  // namespace octreenca
