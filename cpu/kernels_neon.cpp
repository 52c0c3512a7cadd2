// The kernels for NEON.
#include <cstdint>

namespace octreenca {
namespace {
constexpr int kVectorBytes = 16;
constexpr int kBlockVectors = 4;  // of 32 registers, 24 hold sums
}  // namespace
}  // namespace octreenca

#include "kernels_impl.hpp"

namespace octreenca {
extern const KernelSet kernels_neon;
const KernelSet kernels_neon = {"neon", false, operations<float, float>(),
                                 operations<float, Half>(), nullptr, burn<float>};
}  // namespace octreenca
