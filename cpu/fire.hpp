// The counter-based fire draw. Must give the same bits as nnunet_octreenca/ops/fire.py.
#pragma once

#include <cstdint>

namespace octreenca {

constexpr std::uint32_t kGolden = 0x9E3779B9u;  // 2^32 / golden ratio, odd

// lowbias32 (C. Wellons, "Prospecting for Hash Functions", 2018).
inline std::uint32_t mix(std::uint32_t value) {
  value ^= value >> 16;
  value *= 0x7FEB352Du;
  value ^= value >> 15;
  value *= 0x846CA68Bu;
  value ^= value >> 16;
  return value;
}

inline std::uint32_t absorb(std::uint32_t key, std::uint32_t word) {
  return mix((key ^ word) + kGolden);
}

// One row along x: a base and an odd stride of its own, so that no two rows are shifted
// copies of one another. A cell's draw is mix(base + x * stride).
struct RowDraw {
  std::uint32_t base;
  std::uint32_t stride;

  RowDraw(std::uint32_t key, std::uint32_t z, std::uint32_t y)
      : base(absorb(absorb(key, z), y)), stride(mix(base + kGolden) | 1u) {}

  std::uint32_t operator()(std::uint32_t x) const { return mix(base + x * stride); }
};

// fired[x] = 1 where the cell x0 + x of the row fires. 0 < threshold < 2^32.
inline void fire_row(std::uint8_t* fired, std::int64_t width, const RowDraw& draw,
                     std::uint32_t threshold, std::uint32_t x0) {
  const RowDraw row = draw;  // a copy the vectoriser can keep in registers
#ifdef _OPENMP
#pragma omp simd
#endif
  for (std::int64_t x = 0; x < width; ++x) {
    fired[x] = row(x0 + static_cast<std::uint32_t>(x)) < threshold;
  }
}

// fired is (depth, height, width), contiguous; (z0, y0, x0) are its first cell's coordinates
// in the whole level.
inline void fire_mask(std::uint8_t* fired, std::int64_t depth, std::int64_t height,
                      std::int64_t width, std::uint32_t key, std::uint32_t threshold,
                      std::uint32_t z0, std::uint32_t y0, std::uint32_t x0, int threads) {
  const std::int64_t rows = depth * height;
  // A thread costs some 10 us to wake, a cell 0.5 ns to draw.
  const bool parallel = threads > 1 && rows * width > 65536;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (parallel)
#endif
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto z = z0 + static_cast<std::uint32_t>(row / height);
    const auto y = y0 + static_cast<std::uint32_t>(row % height);
    fire_row(fired + row * width, width, RowDraw(key, z, y), threshold, x0);
  }
  (void)parallel;
}

}  // namespace octreenca
