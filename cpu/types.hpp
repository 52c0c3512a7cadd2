// The types that all parts of the engine share: shapes, ranges, weights, images and results.
//
// Includes point one way: types, kernels, memory, threads <- level <- steps <- octree, stream, with
// pyramid and level_input (the image of every level, a level's input) beside them, <- bindings, web;
// level_glue (a level's input in training) needs level and threads only.
#pragma once

#include <cstdint>

namespace octreenca {

// Cells per axis; a 2-D level has depth 1. The level is cut into slices along its first axis: the
// rows of a 2-D level, the planes of a 3-D one (Python says rows for both).
struct Shape {
  int dimension;
  std::int64_t depth, height, width;

  std::int64_t cells() const { return depth * height * width; }
  std::int64_t slices() const { return dimension == 2 ? height : depth; }
  std::int64_t slice_height() const { return dimension == 2 ? 1 : height; }
  std::int64_t slice_cells() const { return slice_height() * width; }
};

// A range of slices.
struct Range {
  std::int64_t first, end;
  std::int64_t size() const { return end - first; }
};

// What the fire draws of a level depend on, but for step and sample.
struct Seed {
  std::uint64_t seed;
  std::uint32_t level;
  std::uint64_t threshold;  // of 2^32
};

// Coordinates of a window's first cell in the whole level.
struct Origin {
  std::uint32_t z, y, x;
};

// One level's weights as PyTorch keeps them.
template <class T>
struct RawWeights {
  int dimension, channels, inputs, hidden;
  const T* perceive;       // (C, 3, 3) or (C, 3, 3, 3)
  const T* perceive_bias;  // (C)
  const T* hidden_weight;  // (H, 2 C)
  const T* hidden_bias;    // (H)
  const T* update;         // (C - n_in, H)
};

// A level of the octree and the way to the next coarser one.
struct OctreeLevel {
  RawWeights<float> weights;
  int steps;
  int factor[3];  // z, y, x: cells of this level that a cell of the next coarser one covers
  // (C - n_in, C of the next coarser level - n_in): what the parents' channels are multiplied with
  // on their way to this level; null where they are copied
  const float* from_parent;
};

// (n_in, z, y, x), strides in elements; nothing is copied.
struct Image {
  const float* data;
  int channels;
  std::int64_t channel_stride, z_stride, y_stride, x_stride;
};

// Where the result goes. Either labels or logits are given.
struct Output {
  int logits;       // K, channels n_in to n_in + K of the state
  bool background;  // label 0 where no logit is above 0; logits get a channel of zeros in front
  void* labels;     // (z, y, x) of `label_bytes` each, or null
  int label_bytes;  // 1 or 2
  float* values;    // (K or K + 1, z, y, x), or null
};

}  // namespace octreenca
