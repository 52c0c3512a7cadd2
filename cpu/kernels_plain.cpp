// The kernels for whatever the compiler takes for granted.
#define OCTREENCA_KERNELS plain
#define OCTREENCA_VECTOR_BYTES 16
#define OCTREENCA_BLOCK_VECTORS 2  // of 16 registers, 12 hold sums
#define OCTREENCA_FLOAT64
#include "kernel_set.hpp"
