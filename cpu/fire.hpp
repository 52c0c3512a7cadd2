// The counter-based fire draw. Must give the same bits as nnunet_octreenca/ops/fire.py.
//
// Every function here has internal linkage: the header is compiled for several instruction sets,
// and the linker must not let a machine run another one's copy.
#pragma once

#include <cstdint>

namespace octreenca {

constexpr std::uint32_t kGolden = 0x9E3779B9u;         // 2^32 / golden ratio, odd
constexpr std::uint64_t kCertain = std::uint64_t{1} << 32;  // the threshold of fire_rate = 1

// lowbias32 (C. Wellons, "Prospecting for Hash Functions", 2018).
static inline std::uint32_t mix(std::uint32_t value) {
  value ^= value >> 16;
  value *= 0x7FEB352Du;
  value ^= value >> 15;
  value *= 0x846CA68Bu;
  value ^= value >> 16;
  return value;
}

static inline std::uint32_t absorb(std::uint32_t key, std::uint32_t word) {
  return mix((key ^ word) + kGolden);
}

// All of a draw but the cell's coordinates.
static inline std::uint32_t draw_key(std::uint64_t seed, std::uint32_t level, std::uint32_t step,
                                     std::uint32_t sample) {
  std::uint32_t key = absorb(0u, static_cast<std::uint32_t>(seed));
  key = absorb(key, static_cast<std::uint32_t>(seed >> 32));
  key = absorb(key, level);
  key = absorb(key, step);
  return absorb(key, sample);
}

// A row has a base and an odd stride of its own, so that no two rows are shifted copies of one
// another.
struct FireRow {
  std::uint32_t base, stride;
};
static inline FireRow fire_row_of(std::uint32_t key, std::uint32_t z, std::uint32_t y) {
  const std::uint32_t base = absorb(absorb(key, z), y);
  return {base, mix(base + kGolden) | 1u};
}
static inline std::uint32_t fire_draw(FireRow row, std::uint32_t x) {
  return mix(row.base + x * row.stride);
}

// fired[x] = 1 where the cell x0 + x of the row (z, y) fires.
static inline void fire_row(std::uint8_t* __restrict fired, std::int64_t width, std::uint32_t key,
                            std::uint32_t z, std::uint32_t y, std::uint32_t x0,
                            std::uint64_t threshold) {
  if (threshold >= kCertain) {
    for (std::int64_t x = 0; x < width; ++x) fired[x] = 1;
    return;
  }
  const FireRow row = fire_row_of(key, z, y);
  const auto limit = static_cast<std::uint32_t>(threshold);
  for (std::int64_t x = 0; x < width; ++x) {
    fired[x] = fire_draw(row, x0 + static_cast<std::uint32_t>(x)) < limit;
  }
}

}  // namespace octreenca
