// The kernels for AVX2, FMA and F16C.
#define OCTREENCA_KERNELS avx2
#define OCTREENCA_VECTOR_BYTES 32
#define OCTREENCA_BLOCK_VECTORS 2  // of 16 registers, 12 hold sums
#include "kernel_set.hpp"
