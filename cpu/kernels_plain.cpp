// The kernels for whatever the compiler takes for granted.
#include <cstdint>

namespace octreenca {
namespace {
constexpr int kVectorBytes = 16;
constexpr int kBlockVectors = 2;  // of 16 registers, 12 hold sums
}  // namespace
}  // namespace octreenca

#include "kernels_impl.hpp"

namespace octreenca {
namespace {
constexpr Operations<double, double> kTwice = operations<double, double>();
}  // namespace

extern const KernelSet kernels_plain;
const KernelSet kernels_plain = {"plain", false, operations<float, float>(),
                                 operations<float, Half>(), &kTwice, burn<float>};
}  // namespace octreenca
