// The kernels for AVX-512 with bfloat16 products.
#include <cstdint>

namespace octreenca {
namespace {
constexpr int kVectorBytes = 64;
constexpr int kBlockVectors = 4;  // of 32 registers, 24 hold sums
}  // namespace
}  // namespace octreenca

#include "kernels_impl.hpp"

namespace octreenca {
extern const KernelSet kernels_avx512_bf16;
const KernelSet kernels_avx512_bf16 = {"avx512_bf16", true, operations<float, float>(),
                                 operations<float, Half>(), nullptr, burn<float>};
}  // namespace octreenca
