// The kernels for AVX-512 with bfloat16 products.
#define OCTREENCA_KERNELS avx512_bf16
#define OCTREENCA_VECTOR_BYTES 64
#define OCTREENCA_BLOCK_VECTORS 4  // of 32 registers, 24 hold sums
#define OCTREENCA_NATIVE_BF16
#include "kernel_set.hpp"
