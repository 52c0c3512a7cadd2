// The CUDA driver and NVRTC, found when they are first needed and never linked: one build of this
// module serves machines with and without a GPU. No header of the toolkit is needed either; the
// few functions used are declared here as the driver API and NVRTC document them.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

namespace octreenca {

// The library is not there, or lacks a function.
struct LibraryError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// The compiler refuses the source; what() ends in its log.
struct CompileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// The driver returned an error.
struct DriverError : std::runtime_error {
  DriverError(const std::string& what, int code_) : std::runtime_error(what), code(code_) {}
  int code;
};

class Nvrtc {
 public:
  // Loads the libraries in their order by path; the last one is NVRTC itself, those before are
  // what it looks for by name (libnvrtc-builtins).
  explicit Nvrtc(const std::vector<std::string>& paths);
  std::pair<int, int> version() const;
  std::vector<int> architectures() const;

  struct Compiled {
    std::string cubin, log;
  };
  // `headers` are (name, text): nothing is read from disk.
  Compiled compile(const std::string& source, const std::string& name,
                   const std::vector<std::pair<std::string, std::string>>& headers,
                   const std::vector<std::string>& options) const;

 private:
  using Program = struct OpaqueProgram*;
  void check(int code, const char* doing) const;
  int (*version_)(int*, int*);
  int (*architecture_count_)(int*);
  int (*architectures_)(int*);
  int (*create_)(Program*, const char*, const char*, int, const char* const*, const char* const*);
  int (*compile_)(Program, int, const char* const*);
  int (*cubin_size_)(Program, std::size_t*);
  int (*cubin_)(Program, char*);
  int (*log_size_)(Program, std::size_t*);
  int (*log_)(Program, char*);
  int (*destroy_)(Program*);
  const char* (*error_)(int);
};

class Driver {
 public:
  explicit Driver(const std::string& path);

  using Context = struct OpaqueContext*;
  using Module = struct OpaqueModule*;
  using Function = struct OpaqueFunction*;

  // The device's primary context, which PyTorch uses too.
  Context retain(int device) const;
  Module load(Context context, const std::string& cubin) const;
  // A kernel that may use `shared` bytes of dynamic shared memory.
  Function function(Context context, Module module, const std::string& name, int shared) const;
  // Blocks of the kernel that one multiprocessor holds.
  int blocks(Context context, Function function, int threads, int shared) const;
  void launch(Context context, Function function, unsigned blocks, int threads, int shared,
              void* stream, void* arguments) const;

 private:
  friend class InContext;
  void check(int code, const std::string& doing) const;
  int (*init_)(unsigned);
  int (*device_)(int*, int);
  int (*retain_)(Context*, int);
  int (*push_)(Context);
  int (*pop_)(Context*);
  int (*load_)(Module*, const void*);
  int (*function_)(Function*, Module, const char*);
  int (*set_attribute_)(Function, int, int);
  int (*occupancy_)(int*, Function, int, std::size_t);
  int (*launch_)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                 void*, void**, void**);
  int (*error_name_)(int, const char**);
  int (*error_text_)(int, const char**);
};

}  // namespace octreenca
