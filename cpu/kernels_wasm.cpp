// The kernels for WebAssembly's 128-bit vectors; fused products where compiled with
// -mrelaxed-simd.
#define OCTREENCA_KERNELS wasm
#define OCTREENCA_VECTOR_BYTES 16
#define OCTREENCA_BLOCK_VECTORS 2  // the engines of browsers have 16 registers: 12 hold sums
#define OCTREENCA_PREDICTION_ONLY
#include "kernel_set.hpp"
