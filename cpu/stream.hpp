// The whole network on an image that is handed over in bands of rows (2-D) or planes (3-D), its
// units. All levels but the coarsest exist as rings of units only: a wavefront runs through every level
// as soon as the level above has finished the parents it needs. Same bits as `octree_forward`.
//
//   1. `pool` with all units of the image, in order, in bands that begin at multiples of `factor`
//   2. `prepare`: the coarsest level, whole
//   3. for every range of units wanted: `begin`, then `advance` with the units of `image_range`
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "steps.hpp"
#include "types.hpp"

namespace octreenca {

class OctreeStream {
 public:
  virtual ~OctreeStream() = default;

  // Units of the image that a unit of the coarsest level covers.
  virtual std::int64_t factor() const = 0;

  virtual void pool(const Image& band, Range units) = 0;
  virtual void prepare() = 0;

  virtual void begin(Range wanted) = 0;
  // What `advance` has to be given: more than is wanted, where that ends within the image.
  virtual Range image_range() const = 0;
  // How far the wanted units are done once the image's are there up to `image_end`.
  virtual std::int64_t ready(std::int64_t image_end) const = 0;
  // Takes the next units of the image and computes what they allow. `output` has the place of the
  // units from the last call's `ready` to this one's.
  virtual void advance(const Image& band, Range units, const Output& output) = 0;
};

// `half`: states in float16. The weights are copied.
std::unique_ptr<OctreeStream> make_octree_stream(const Shape& shape,
                                                 const std::vector<OctreeLevel>& levels,
                                                 std::uint64_t seed, std::uint64_t threshold,
                                                 std::uint32_t sample, const Options& options,
                                                 bool half);

}  // namespace octreenca
