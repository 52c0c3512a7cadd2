// The kernels for AVX-512 (F, BW, DQ, VL).
#define OCTREENCA_KERNELS avx512
#define OCTREENCA_VECTOR_BYTES 64
#define OCTREENCA_BLOCK_VECTORS 4  // of 32 registers, 24 hold sums
#include "kernel_set.hpp"
