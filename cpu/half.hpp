// float16 in memory: conversions one by one. Internal linkage, as in fire.hpp.
#pragma once

#include <cstdint>
#include <cstring>

namespace octreenca {

struct Half {
  std::uint16_t bits;
};

static inline float half_to_float(std::uint16_t bits) {
  const std::uint32_t sign = std::uint32_t(bits & 0x8000u) << 16;
  std::uint32_t rest = std::uint32_t(bits & 0x7FFFu) << 13;
  float value;
  if ((bits & 0x7C00u) == 0x7C00u) {  // infinite or NaN
    rest |= 0x7F800000u;
    std::memcpy(&value, &rest, 4);
  } else {
    std::memcpy(&value, &rest, 4);
    value *= 5.192296858534828e33f;  // 2^112: exponents 15 and 127, subnormals too
  }
  std::uint32_t word;
  std::memcpy(&word, &value, 4);
  word |= sign;
  std::memcpy(&value, &word, 4);
  return value;
}

// To nearest, ties to even.
static inline std::uint16_t float_to_half(float value) {
  std::uint32_t word;
  std::memcpy(&word, &value, 4);
  const std::uint32_t sign = (word >> 16) & 0x8000u;
  word &= 0x7FFFFFFFu;
  if (word > 0x7F800000u) return static_cast<std::uint16_t>(sign | 0x7E00u);   // NaN
  if (word >= 0x477FF000u) return static_cast<std::uint16_t>(sign | 0x7C00u);  // beyond 65,504
  if (word < 0x38800000u) {  // subnormal: let the addition do the rounding
    float magnitude;
    std::memcpy(&magnitude, &word, 4);
    magnitude += 0.5f;
    std::memcpy(&word, &magnitude, 4);
    return static_cast<std::uint16_t>(sign | (word - 0x3F000000u));
  }
  word += 0xC8000FFFu + ((word >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | (word >> 13));
}

}  // namespace octreenca
