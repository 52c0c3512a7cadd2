// The kernels for NEON.
#define OCTREENCA_KERNELS neon
#define OCTREENCA_VECTOR_BYTES 16
#define OCTREENCA_BLOCK_VECTORS 4  // of 32 registers, 24 hold sums
#include "kernel_set.hpp"
