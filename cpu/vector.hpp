// Vectors of kVectorBytes, for whoever includes this; nothing here leaves the including file.
#pragma once

#include <cstdint>
#include <cstring>

// Intrinsics only where the vectors are the processor's own.
#if defined(OCTREENCA_PORTABLE_VECTORS)
#define OCTREENCA_AVX512 0
#define OCTREENCA_AVX2 0
#define OCTREENCA_NEON 0
#elif defined(__AVX512F__) || (defined(__F16C__) && defined(__AVX2__))
#include <immintrin.h>
#ifdef __AVX512F__
#define OCTREENCA_AVX512 1
#endif
#define OCTREENCA_AVX2 1
#elif defined(__aarch64__)
#include <arm_neon.h>
#define OCTREENCA_NEON 1
#endif

#include "half.hpp"
#include "kernels.hpp"

#define OCTREENCA_INLINE static inline __attribute__((always_inline))

namespace octreenca {
namespace {

// A number as a type, for lambdas that unroll.
template <int count>
struct Count {
  static constexpr int value = count;
};

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};
template <>
struct VectorOf<Half> {  // loads and stores of its own, below
  typedef Half type;
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
OCTREENCA_INLINE Vector<T> load(const T* from) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(from);
}

template <class T>
OCTREENCA_INLINE void store(T* to, Vector<T> value) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(to) = value;
}

// An initialiser list becomes one broadcast; `Vector<T>{} + value` costs an addition.
template <class T, int count, int... lane>
struct Broadcast : Broadcast<T, count - 1, count - 1, lane...> {};
template <class T, int... lane>
struct Broadcast<T, 0, lane...> {
  OCTREENCA_INLINE Vector<T> of(T value) { return Vector<T>{(static_cast<void>(lane), value)...}; }
};
template <class T>
OCTREENCA_INLINE Vector<T> broadcast(T value) {
  return Broadcast<T, kLanes<T>>::of(value);
}

// ------------------------------------------------------------------ float16 in memory

OCTREENCA_INLINE Vector<float> load(const Half* from) {
#if OCTREENCA_AVX512
  return (Vector<float>)_mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256((const __m256i*)from));
#elif OCTREENCA_AVX2
  return (Vector<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#elif OCTREENCA_NEON
  return (Vector<float>)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&from->bits)));
#else
  Vector<float> value;
  for (int lane = 0; lane < kLanes<float>; ++lane) value[lane] = half_to_float(from[lane].bits);
  return value;
#endif
}

OCTREENCA_INLINE void store(Half* to, Vector<float> value) {
#if OCTREENCA_AVX512
  _mm256_storeu_si256((__m256i*)to, _mm512_maskz_cvtps_ph(0xFFFF, (__m512)value,
                                                                   _MM_FROUND_TO_NEAREST_INT));
#elif OCTREENCA_AVX2
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#elif OCTREENCA_NEON
  vst1_u16(&to->bits, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)value)));
#else
  for (int lane = 0; lane < kLanes<float>; ++lane) to[lane].bits = float_to_half(value[lane]);
#endif
}

// ------------------------------------------------------------------ bfloat16 products

// To nearest, ties to even, in the upper half of every word; NaN stays NaN.
OCTREENCA_INLINE Vector<std::uint32_t> round_to_bf16(Vector<float> value) {
  const auto word = (Vector<std::uint32_t>)value;
  const auto rounded = word + (((word >> 16) & 1u) + 0x7FFFu);
  const auto is_nan = (Vector<std::uint32_t>)(value != value);
  return ((rounded & ~is_nan) | ((word | 0x400000u) & is_nan)) & 0xFFFF0000u;
}

OCTREENCA_INLINE void store_bf16(std::uint16_t* to, Vector<float> value) {
#if OCTREENCA_AVX512 && defined(__AVX512BF16__)
  _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)value));
#else
  const auto words = round_to_bf16(value);
  for (int lane = 0; lane < kLanes<float>; ++lane) to[lane] = std::uint16_t(words[lane] >> 16);
#endif
}

// sum + low(x) * low(w) + high(x) * high(w), every word holding two bfloat16.
OCTREENCA_INLINE Vector<float> dot_bf16(Vector<float> sum, Vector<std::uint32_t> x,
                                        Vector<std::uint32_t> w) {
#if OCTREENCA_AVX512 && defined(__AVX512BF16__)
  return (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
  sum += (Vector<float>)(x << 16) * (Vector<float>)(w << 16);
  sum += (Vector<float>)(x & 0xFFFF0000u) * (Vector<float>)(w & 0xFFFF0000u);
  return sum;
#endif
}

}  // namespace
}  // namespace octreenca
