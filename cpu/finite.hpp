// How many cells of a level are NaN or infinite after its steps.
#pragma once

#include <atomic>
#include <cstdint>

#include "level.hpp"

namespace octreenca {

// Several threads add slices, each while it is in the cache.
template <class T, class S>
class NonFiniteCells {
 public:
  NonFiniteCells(const Operations<T, S>& operations, const Sizes& sizes, const Shape& shape)
      : operations_(operations), sizes_(sizes), cells_(shape.slice_cells()) {}

  void add(const S* slice) {
    checked_.fetch_add(cells_, std::memory_order_relaxed);
    const std::int64_t found = operations_.non_finite(sizes_, cells_, slice);
    if (found != 0) found_.fetch_add(found, std::memory_order_relaxed);
  }

  std::int64_t found() const { return found_.load(std::memory_order_relaxed); }
  std::int64_t checked() const { return checked_.load(std::memory_order_relaxed); }

 private:
  const Operations<T, S>& operations_;
  const Sizes sizes_;
  const std::int64_t cells_;
  std::atomic<std::int64_t> found_{0}, checked_{0};
};

}  // namespace octreenca
