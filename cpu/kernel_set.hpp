// One set of kernels, compiled for one instruction set. Define before including:
//
//   OCTREENCA_KERNELS         its name
//   OCTREENCA_VECTOR_BYTES    of a vector register
//   OCTREENCA_BLOCK_VECTORS   vectors of sums that a block of the micro-kernel keeps in registers,
//                             times six cells
//   OCTREENCA_NATIVE_BF16     if the processor multiplies bfloat16 itself
//   OCTREENCA_FLOAT64         if this set computes in double too
//   OCTREENCA_PREDICTION_ONLY if float32, forward, is all that is needed
#include <cstdint>

namespace octreenca {
namespace {
constexpr int kVectorBytes = OCTREENCA_VECTOR_BYTES;
constexpr int kBlockVectors = OCTREENCA_BLOCK_VECTORS;
}  // namespace
}  // namespace octreenca

#include "kernels_impl.hpp"

#define OCTREENCA_JOIN_(a, b) a##b
#define OCTREENCA_JOIN(a, b) OCTREENCA_JOIN_(a, b)
#define OCTREENCA_TEXT_(a) #a
#define OCTREENCA_TEXT(a) OCTREENCA_TEXT_(a)

namespace octreenca {
namespace {
#ifdef OCTREENCA_NATIVE_BF16
constexpr bool kNativeBf16 = true;
#else
constexpr bool kNativeBf16 = false;
#endif
#ifdef OCTREENCA_FLOAT64
constexpr Operations<double, double> kFloat64Operations = operations<double, double>();
constexpr const Operations<double, double>* kFloat64 = &kFloat64Operations;
#else
constexpr const Operations<double, double>* kFloat64 = nullptr;
#endif
}  // namespace

extern const KernelSet OCTREENCA_JOIN(kernels_, OCTREENCA_KERNELS);
#ifdef OCTREENCA_PREDICTION_ONLY
const KernelSet OCTREENCA_JOIN(kernels_, OCTREENCA_KERNELS) = {
    OCTREENCA_TEXT(OCTREENCA_KERNELS), false, prediction_operations<float>(), {}, nullptr, nullptr};
#else
const KernelSet OCTREENCA_JOIN(kernels_, OCTREENCA_KERNELS) = {
    OCTREENCA_TEXT(OCTREENCA_KERNELS), kNativeBf16, operations<float, float>(),
    operations<float, Half>(), kFloat64, burn<float>};
#endif
}  // namespace octreenca
