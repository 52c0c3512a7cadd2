// The kernels for AVX2, FMA and F16C.
#include <cstdint>

namespace octreenca {
namespace {
constexpr int kVectorBytes = 32;
constexpr int kBlockVectors = 2;  // of 16 registers, 12 hold sums
}  // namespace
}  // namespace octreenca

#include "kernels_impl.hpp"

namespace octreenca {
extern const KernelSet kernels_avx2;
const KernelSet kernels_avx2 = {"avx2", false, operations<float, float>(),
                                 operations<float, Half>(), nullptr, burn<float>};
}  // namespace octreenca
