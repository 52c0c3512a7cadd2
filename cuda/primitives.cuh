// What the processor offers beside arithmetic: barriers, exchange between lanes, tensor cores,
// float16. Inline PTX, so that no header of the CUDA toolkit is needed. Compiled as C++ for the
// host (tests/cuda), every one of them has a plain twin in shim.hpp.
//
// A warp's lane has a row g = lane / 4 and a place t = lane % 4, the names of the PTX manual.
#pragma once

#include <cstdint>

namespace octreenca {
using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i64 = std::int64_t;
}  // namespace octreenca

#ifndef __CUDACC__
#include "shim.hpp"
#else

// Defines a kernel of plain name: threads a block, the blocks that a multiprocessor shall have
// registers for (0: the compiler's choice), the type of its arguments, what it does.
#define OCTREENCA_KERNEL(name, threads, blocks, Args, ...)                              \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const Args args) { \
    __VA_ARGS__(args);                                                                  \
  }

namespace octreenca {

__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return bytes;
}

__device__ __forceinline__ void block_barrier() { __syncthreads(); }
__device__ __forceinline__ void warp_barrier() { __syncwarp(); }
__device__ __forceinline__ u32 ballot(bool value) { return __ballot_sync(0xFFFFFFFFu, value); }
__device__ __forceinline__ float from_lane(float value, u32 lane) {
  return __shfl_sync(0xFFFFFFFFu, value, static_cast<int>(lane));
}
__device__ __forceinline__ int from_lane(int value, u32 lane) {
  return __shfl_sync(0xFFFFFFFFu, value, static_cast<int>(lane));
}
__device__ __forceinline__ int count_bits(u32 word) { return __popc(word); }
__device__ __forceinline__ void add_one(u64* counter) {
  atomicAdd(reinterpret_cast<unsigned long long*>(counter), 1ull);
}

// ------------------------------------------------------------------ copies to shared memory

// Starts to copy 16 bytes; they are there when the thread has called `copies_done`, for others after
// a barrier. No register is taken meanwhile. Before Ampere the copy is done at once.
__device__ __forceinline__ void copy_16(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(static_cast<u32>(__cvta_generic_to_shared(shared))), "l"(global)
               : "memory");
#else
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}
__device__ __forceinline__ void copies_done() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" : : : "memory");
#endif
}

// ------------------------------------------------------------------ float16, two a word

__device__ __forceinline__ float low_half(u32 word) {
  float value;
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(value) : "r"(word));
  return value;
}
__device__ __forceinline__ float high_half(u32 word) {
  float value;
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(value) : "r"(word));
  return value;
}
__device__ __forceinline__ u32 halves(float low, float high) {
  u32 word;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
#else
  asm("{.reg .b16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h};}"
      : "=r"(word)
      : "f"(low), "f"(high));
#endif
  return word;
}
// NaN stays NaN, so that a state that is lost is seen to be.
__device__ __forceinline__ float relu(float value) {
#if __CUDA_ARCH__ >= 800
  float result;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(value));
  return result;
#else
  return value < 0.0f ? 0.0f : value;
#endif
}
__device__ __forceinline__ u32 halves_of_relu(float low, float high) {
#if __CUDA_ARCH__ >= 800
  u32 word;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return halves(relu(low), relu(high));
#endif
}
// a * b + c of both halves.
__device__ __forceinline__ u32 halves_fma(u32 a, u32 b, u32 c) {
  u32 word;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "r"(c));
  return word;
}

// ------------------------------------------------------------------ tensor cores

// sum += A * B, 16 x 8 x 16 float16. Turing multiplies 8 deep.
__device__ __forceinline__ void mma_f16(float* sum, const u32* a, u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

// sum += A * B, 16 x 8 x 8 float16.
__device__ __forceinline__ void mma_f16_short(float* sum, const u32* a, u32 b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

#if __CUDA_ARCH__ >= 800
// The nearest number with 10 bits of fraction, as the tensor cores take it.
__device__ __forceinline__ u32 to_tf32(float value) {
  u32 word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(value));
  return word;
}

// sum += A * B, 16 x 8 x 8 TF32.
__device__ __forceinline__ void mma_tf32(float* sum, const u32* a, u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

}  // namespace octreenca
#endif
