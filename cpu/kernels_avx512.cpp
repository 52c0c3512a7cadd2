// The kernels for AVX-512 (F, BW, DQ, VL).
#include <cstdint>

namespace octreenca {
namespace {
constexpr int kVectorBytes = 64;
constexpr int kBlockVectors = 4;  // of 32 registers, 24 hold sums
}  // namespace
}  // namespace octreenca

#include "kernels_impl.hpp"

namespace octreenca {
extern const KernelSet kernels_avx512;
const KernelSet kernels_avx512 = {"avx512", false, operations<float, float>(),
                                 operations<float, Half>(), nullptr, burn<float>};
}  // namespace octreenca
