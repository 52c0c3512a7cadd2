// AVX-512's code shape (64-byte vectors, 24 sums) without its instructions: machines that lack
// them test the packing and the remainders too.
#define OCTREENCA_KERNELS wide
#define OCTREENCA_VECTOR_BYTES 64
#define OCTREENCA_BLOCK_VECTORS 4
#define OCTREENCA_PORTABLE_VECTORS
#include "kernel_set.hpp"
