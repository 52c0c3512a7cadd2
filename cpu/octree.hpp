// The whole network on one image: pooling, levels from the coarsest to the finest, labels or
// logits at the end. Only one level's state exists at a time, beside its parents; where it pays,
// the finest level's never does.
#pragma once

#include <cstdint>
#include <vector>

#include "steps.hpp"

namespace octreenca {

// (n_in, z, y, x), strides in elements; nothing is copied.
struct Image {
  const float* data;
  int channels;
  std::int64_t channel_stride, z_stride, y_stride, x_stride;
};

struct OctreeLevel {
  RawWeights<float> weights;
  int steps;
  int factor[3];  // z, y, x: cells of this level that a cell of the next coarser one covers
};

// Where the result goes. Either labels or logits are given.
struct Output {
  int logits;       // K, channels n_in to n_in + K of the state
  bool background;  // label 0 where no logit is above 0; logits get a channel of zeros in front
  void* labels;     // (z, y, x) of `label_bytes` each, or null
  int label_bytes;  // 1 or 2
  float* values;    // (K or K + 1, z, y, x), or null
};

template <class S>
void octree_forward(const Image& image, const Shape& shape, const std::vector<OctreeLevel>& levels,
                    std::uint64_t seed, std::uint64_t threshold, std::uint32_t sample,
                    const Output& output, const Options& options);

}  // namespace octreenca
