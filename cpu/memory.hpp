// Memory that is not touched before it is used: what is never written costs nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

namespace octreenca {

// Where exceptions are compiled out, as in WebAssembly, the program ends.
[[noreturn]] inline void out_of_memory() {
#if defined(__cpp_exceptions)
  throw std::bad_alloc();
#else
  std::abort();
#endif
}

constexpr std::size_t kAlignment = 64;  // a cache line, the widest vector
constexpr std::int64_t kMostBytes = std::int64_t{1} << 62;

template <class T>
class Buffer {
  static_assert(std::is_trivial_v<T>, "only numbers");

 public:
  Buffer() = default;
  explicit Buffer(std::int64_t count) {
    if (count < 0 || count > kMostBytes / static_cast<std::int64_t>(sizeof(T))) {
      out_of_memory();
    }
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    const std::size_t whole = (bytes + kAlignment) / kAlignment * kAlignment;
    data_ = static_cast<T*>(std::aligned_alloc(kAlignment, whole));
    if (data_ == nullptr) out_of_memory();
  }
  Buffer(std::int64_t count, std::nullptr_t) : Buffer(count) {  // zeros
    std::memset(data_, 0, static_cast<std::size_t>(count) * sizeof(T));
  }
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  T* get() const { return data_; }
  T& operator[](std::int64_t index) const { return data_[index]; }
  void release() {
    std::free(data_);
    data_ = nullptr;
  }

 private:
  T* data_ = nullptr;
};

}  // namespace octreenca
