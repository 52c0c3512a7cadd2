// The whole network on an image that is handed over in bands of slices. All levels but the coarsest
// exist as rings of slices only: a wavefront runs through every level as soon as the level above
// has finished the parents it needs. Same bits as `octree_forward`.
//
//   1. `pool` with all slices of the image, in order, in bands that begin at multiples of `factor`
//   2. `prepare`: the coarsest level, whole
//   3. for every range of slices wanted: `begin`, then `advance` with the slices of `image_range`
//
// A stream of the same image and network may take the coarsest level from another's `save` instead
// of 1 and 2, also in another process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "steps.hpp"
#include "types.hpp"

namespace octreenca {

class OctreeStream {
 public:
  virtual ~OctreeStream() = default;

  // Slices of the image that a slice of the coarsest level covers.
  virtual std::int64_t factor() const = 0;

  virtual void pool(const Image& band, Range slices) = 0;
  virtual void prepare() = 0;

  // The coarsest level once it is prepared, for kernels of the same lanes: its states, and how many
  // of its cells are not finite.
  virtual std::size_t saved_size() const = 0;  // bytes
  virtual void save(unsigned char* to) const = 0;
  virtual void restore(const unsigned char* from) = 0;

  virtual void begin(Range wanted) = 0;
  // What `advance` has to be given: more than is wanted, where that ends within the image.
  virtual Range image_range() const = 0;
  // How far the wanted slices are done once the image's are there up to `image_end`.
  virtual std::int64_t ready(std::int64_t image_end) const = 0;
  // Takes the next slices of the image and computes what they allow. `output` has the place of the
  // slices from the last call's `ready` to this one's.
  virtual void advance(const Image& band, Range slices, const Output& output) = 0;

  // Of all cells computed so far that the wanted slices depend on, the finest level first: how many
  // are not finite after their level's steps.
  virtual std::vector<NonFinite> non_finite() const = 0;
};

// `half`: states in float16. The weights are copied.
std::unique_ptr<OctreeStream> make_octree_stream(const Shape& shape,
                                                 const std::vector<OctreeLevel>& levels,
                                                 std::uint64_t seed, std::uint64_t threshold,
                                                 std::uint32_t sample, const Options& options,
                                                 bool half);

}  // namespace octreenca
