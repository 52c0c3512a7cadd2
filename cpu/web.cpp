// The engine's C interface for WebAssembly, over `OctreeStream` and `Walk`. Objects are pointers;
// what they point to is the engine's. A number of slices or cells is an int: memory has 32 bits.
// Where memory runs out the instance traps, and a new one has to be made.
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "stream.hpp"
#include "walk.hpp"

using namespace octreenca;

#define OCTREENCA_EXPORT(name) \
  extern "C" __attribute__((export_name(#name), visibility("default")))

namespace {

// A network's numbers, as `nnunet_octreenca/export/packing.py` packs them:
//
//   uint32   dimension, n_in, K, background (0 or 1), levels, threshold low, threshold high
//   uint32   for every level, the finest first: C, H, steps, factors z, y, x
//   float32  for every level: perceive, its bias, hidden, its bias, update; and where the next
//            coarser level has another C, the map from there
class Network {
 public:
  explicit Network(const std::uint32_t* words) {
    constexpr std::uint32_t kHeader = 7, kRow = 6;
    const int dimension = static_cast<int>(words[0]), inputs = static_cast<int>(words[1]);
    logits = static_cast<int>(words[2]);
    background = words[3] != 0;
    const std::uint32_t count = words[4];
    threshold = words[5] | std::uint64_t{words[6]} << 32;
    const std::uint32_t* row = words + kHeader;
    const auto* next = reinterpret_cast<const float*>(row + kRow * count);
    const auto take = [&](int numbers) {
      const float* begin = next;
      next += numbers;
      return begin;
    };
    for (std::uint32_t i = 0; i < count; ++i, row += kRow) {
      const int channels = static_cast<int>(row[0]), hidden = static_cast<int>(row[1]);
      OctreeLevel level{};
      RawWeights<float>& weights = level.weights;
      weights.dimension = dimension;
      weights.channels = channels;
      weights.inputs = inputs;
      weights.hidden = hidden;
      weights.perceive = take(channels * (dimension == 2 ? 9 : 27));
      weights.perceive_bias = take(channels);
      weights.hidden_weight = take(hidden * 2 * channels);
      weights.hidden_bias = take(hidden);
      weights.update = take((channels - inputs) * hidden);
      level.steps = static_cast<int>(row[2]);
      for (int axis = 0; axis < 3; ++axis) level.factor[axis] = static_cast<int>(row[3 + axis]);
      const int above = i + 1 < count ? static_cast<int>(row[kRow]) : channels;
      if (above != channels) level.from_parent = take((channels - inputs) * (above - inputs));
      levels.push_back(level);
    }
  }

  Shape shape(int depth, int height, int width) const {
    return {levels[0].weights.dimension, depth, height, width};
  }

  // (n_in, z, y, x), contiguous.
  Image image(const float* pixels, const Shape& shape) const {
    const std::int64_t plane = shape.height * shape.width;
    return {pixels, levels[0].weights.inputs, shape.depth * plane, plane, shape.width, 1};
  }

  std::vector<OctreeLevel> levels;
  int logits;
  bool background;
  std::uint64_t threshold;
};

Options options() {
  const KernelSet* sets[1];
  available_kernels(sets, 1);
  Options options{};
  options.kernels = sets[0];
  return options;
}

struct WebStream {
  const Network network;
  const Shape shape;
  const std::unique_ptr<OctreeStream> stream;

  WebStream(const std::uint32_t* words, const Shape& cells, std::uint64_t seed)
      : network(words),
        shape(cells),
        stream(make_octree_stream(cells, network.levels, seed, network.threshold, 0, options(),
                                  false)) {}

  // A band of `slices`, contiguous.
  Image band(const float* pixels, Range slices) const {
    Shape part = shape;
    (shape.dimension == 2 ? part.height : part.depth) = slices.size();
    return network.image(pixels, part);
  }
};

struct WebWalk {
  const Network network;
  Walk walk;

  WebWalk(const std::uint32_t* words, const float* pixels, int depth, int height, int width,
          std::uint64_t seed)
      : network(words),
        walk(network.image(pixels, network.shape(depth, height, width)),
             network.shape(depth, height, width), network.levels, seed, network.threshold,
             options()) {}
};

std::uint64_t seed_of(std::uint32_t low, std::uint32_t high) {
  return low | std::uint64_t{high} << 32;
}

}  // namespace

// Null where there is no more memory.
OCTREENCA_EXPORT(octreenca_allocate) void* octreenca_allocate(std::uint32_t bytes) {
  return bytes > UINT32_MAX - 64 ? nullptr : std::aligned_alloc(64, (bytes + 64) / 64 * 64);
}

OCTREENCA_EXPORT(octreenca_release) void octreenca_release(void* memory) { std::free(memory); }

// ------------------------------------------------------------------ bands in, labels out

// `words` must stay where they are until the stream is closed.
OCTREENCA_EXPORT(octreenca_open)
WebStream* octreenca_open(const std::uint32_t* words, int depth, int height, int width,
                          std::uint32_t seed_low, std::uint32_t seed_high) {
  const Shape shape{static_cast<int>(words[0]), depth, height, width};
  return new WebStream(words, shape, seed_of(seed_low, seed_high));
}

OCTREENCA_EXPORT(octreenca_close) void octreenca_close(WebStream* web) { delete web; }

OCTREENCA_EXPORT(octreenca_factor) int octreenca_factor(const WebStream* web) {
  return static_cast<int>(web->stream->factor());
}

// Slices `first` to `end` - 1, [n_in][slices][...]; in order, beginning at multiples of the factor.
OCTREENCA_EXPORT(octreenca_pool)
void octreenca_pool(WebStream* web, const float* pixels, int first, int end) {
  web->stream->pool(web->band(pixels, {first, end}), {first, end});
}

OCTREENCA_EXPORT(octreenca_prepare) void octreenca_prepare(WebStream* web) {
  web->stream->prepare();
}

OCTREENCA_EXPORT(octreenca_begin) void octreenca_begin(WebStream* web, int first, int end) {
  web->stream->begin({first, end});
}

OCTREENCA_EXPORT(octreenca_image_first) int octreenca_image_first(const WebStream* web) {
  return static_cast<int>(web->stream->image_range().first);
}

OCTREENCA_EXPORT(octreenca_image_end) int octreenca_image_end(const WebStream* web) {
  return static_cast<int>(web->stream->image_range().end);
}

// How far the wanted slices are done once the image is there up to `image_end`.
OCTREENCA_EXPORT(octreenca_ready) int octreenca_ready(const WebStream* web, int image_end) {
  return static_cast<int>(web->stream->ready(image_end));
}

// Takes the next slices of the image. Either `labels` (one byte each) or `values`,
// [K or K + 1][slices][...], has room for the slices that become ready.
OCTREENCA_EXPORT(octreenca_advance)
void octreenca_advance(WebStream* web, const float* pixels, int first, int end,
                       std::uint8_t* labels, float* values) {
  const Network& network = web->network;
  const Output output{network.logits, network.background, labels, 1, values};
  web->stream->advance(web->band(pixels, {first, end}), {first, end}, output);
}

// Cells of all levels that became NaN or infinite, of those that were computed.
OCTREENCA_EXPORT(octreenca_non_finite) double octreenca_non_finite(const WebStream* web) {
  double cells = 0;
  for (const NonFinite& level : web->stream->non_finite()) cells += static_cast<double>(level.cells);
  return cells;
}

// ------------------------------------------------------------------ step by step

// `words` and `pixels` must stay where they are until the walk is ended.
OCTREENCA_EXPORT(octreenca_walk)
WebWalk* octreenca_walk(const std::uint32_t* words, const float* pixels, int depth, int height,
                        int width, std::uint32_t seed_low, std::uint32_t seed_high) {
  return new WebWalk(words, pixels, depth, height, width, seed_of(seed_low, seed_high));
}

OCTREENCA_EXPORT(octreenca_walk_end) void octreenca_walk_end(WebWalk* web) { delete web; }

// 0 at the end.
OCTREENCA_EXPORT(octreenca_walk_advance) int octreenca_walk_advance(WebWalk* web) {
  return web->walk.advance();
}

// level, steps done on it, depth, height, width
OCTREENCA_EXPORT(octreenca_walk_place)
void octreenca_walk_place(const WebWalk* web, std::int32_t* place) {
  const Shape& shape = web->walk.shape();
  place[0] = static_cast<std::int32_t>(web->walk.level());
  place[1] = web->walk.step();
  place[2] = static_cast<std::int32_t>(shape.depth);
  place[3] = static_cast<std::int32_t>(shape.height);
  place[4] = static_cast<std::int32_t>(shape.width);
}

// A channel of all cells of the level.
OCTREENCA_EXPORT(octreenca_walk_channel)
void octreenca_walk_channel(const WebWalk* web, int channel, float* to) {
  web->walk.channel(channel, to);
}
