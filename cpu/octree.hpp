// The whole network on one image: pooling, levels from the coarsest to the finest, labels or
// logits at the end. Only one level's state exists at a time, beside its parents; where it pays,
// the finest level's never does.
#pragma once

#include <cstdint>
#include <vector>

#include "steps.hpp"
#include "types.hpp"

namespace octreenca {

// Returns how many cells of every level are not finite after its steps, the finest level first.
template <class S>
std::vector<NonFinite> octree_forward(const Image& image, const Shape& shape,
                                      const std::vector<OctreeLevel>& levels, std::uint64_t seed,
                                      std::uint64_t threshold, std::uint32_t sample,
                                      const Output& output, const Options& options);

}  // namespace octreenca
