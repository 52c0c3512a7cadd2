// AVX-512's code shape (64-byte vectors, 24 sums) without its instructions: machines that lack
// them test the packing and the remainders too.
#include <cstdint>

namespace octreenca {
namespace {
constexpr int kVectorBytes = 64;
constexpr int kBlockVectors = 4;
}  // namespace
}  // namespace octreenca

#define OCTREENCA_PORTABLE_VECTORS
#include "kernels_impl.hpp"

namespace octreenca {
extern const KernelSet kernels_wide;
const KernelSet kernels_wide = {"wide", false, operations<float, float>(),
                                operations<float, Half>(), nullptr, nullptr};
}  // namespace octreenca
