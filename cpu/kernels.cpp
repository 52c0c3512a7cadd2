// Which kernels this processor runs.
#include "kernels.hpp"

#include <cstring>

namespace octreenca {

#if defined(__wasm_simd128__)
extern const KernelSet kernels_wasm;  // alone: a page downloads what it runs
#else
extern const KernelSet kernels_plain;
#endif
#if defined(__x86_64__)
extern const KernelSet kernels_avx2, kernels_avx512, kernels_avx512_bf16;
#elif defined(__aarch64__)
extern const KernelSet kernels_neon;
#endif

int available_kernels(const KernelSet** sets, int room) {
  int count = 0;
  const auto add = [&](const KernelSet& set) {
    if (count < room) sets[count++] = &set;
  };
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) add(kernels_avx512_bf16);
  if (avx512) add(kernels_avx512);
  if (avx2) add(kernels_avx2);
#elif defined(__aarch64__)
  add(kernels_neon);  // part of every 64-bit Arm
#endif
#if defined(__wasm_simd128__)
  add(kernels_wasm);
#else
  add(kernels_plain);
#endif
  return count;
}

const KernelSet* find_kernels(const char* name) {
  const KernelSet* sets[8];
  const int count = available_kernels(sets, 8);
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(sets[i]->name, name) == 0) return sets[i];
  }
  return nullptr;
}

}  // namespace octreenca
