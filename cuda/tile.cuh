// A block's part of a level: a tile of cells, and around it the halo that its steps need.
#pragma once

#include "network.cuh"

namespace octreenca {

template <int x, int y, int z>
struct Tile {
  static constexpr int kX = x, kY = y, kZ = z;
};

// How many tiles a level has along every axis.
template <class T>
struct Tiles {
  u32 x, y, z;
  __device__ explicit Tiles(const Level& level)
      : x((level.width + T::kX - 1) / T::kX),
        y((level.height + T::kY - 1) / T::kY),
        z((level.depth + T::kZ - 1) / T::kZ) {}
  __device__ u32 of_sample() const { return x * y * z; }
};

__host__ __device__ constexpr int bits_for(int count) {
  int bits = 0;
  while ((1 << bits) < count) ++bits;
  return bits;
}

// A cell's place in a region.
struct Place {
  int x, y, z;
};

// The tile with its halo; cells are numbered inside it, halo included, also where the level ends.
template <class N, class T, int kHalo>
struct Region {
  static constexpr int kHaloZ = N::kDimension == 3 ? kHalo : 0;
  static constexpr int kWidth = T::kX + 2 * kHalo;
  static constexpr int kHeight = T::kY + 2 * kHalo;
  static constexpr int kDepth = T::kZ + 2 * kHaloZ;
  static constexpr int kCells = kWidth * kHeight * kDepth;
  static constexpr int kRows = kHeight * kDepth;
  // A place in 16 bits, for the lists of cells: to be taken apart without a division.
  static constexpr int kXBits = bits_for(kWidth), kYBits = bits_for(kHeight);
  static_assert(kXBits + kYBits + bits_for(kDepth) <= 16, "places are listed in 16 bits");

  const Level& level;
  u32 sample;   // of the launch
  int x, y, z;  // level coordinates of the region's first cell
  bool inner;   // all of it lies in the level: no neighbour is mirrored
  i64 first;    // number of the first cell in all samples of the launch

  __device__ Region(const Level& level_, u32 tile) : level(level_) {
    const Tiles<T> tiles(level);
    sample = tile / tiles.of_sample();
    tile %= tiles.of_sample();
    x = static_cast<int>(tile % tiles.x) * T::kX - kHalo;
    y = static_cast<int>(tile / tiles.x % tiles.y) * T::kY - kHalo;
    z = static_cast<int>(tile / (tiles.x * tiles.y)) * T::kZ - kHaloZ;
    inner = x >= 0 && y >= 0 && z >= 0 && x + kWidth <= level.width &&
            y + kHeight <= level.height && z + kDepth <= level.depth;
    first = ((static_cast<i64>(sample) * level.depth + z) * level.height + y) * level.width + x;
  }

  __device__ __forceinline__ bool inside(Place p) const {
    return inner || (x + p.x >= 0 && x + p.x < level.width && y + p.y >= 0 &&
                     y + p.y < level.height && z + p.z >= 0 && z + p.z < level.depth);
  }
  // Number of a cell in all samples of the launch.
  __device__ __forceinline__ i64 cell(Place p) const {
    const int row = N::kDimension == 2 ? p.y : p.z * level.height + p.y;
    return first + static_cast<i64>(row) * level.width + p.x;
  }
  static __device__ __forceinline__ int index(Place p) {
    return (p.z * kHeight + p.y) * kWidth + p.x;
  }
  static __device__ __forceinline__ u16 code(Place p) {
    return static_cast<u16>((p.z << kYBits | p.y) << kXBits | p.x);
  }
  static __device__ __forceinline__ Place place(u16 code) {
    return {code & ((1 << kXBits) - 1), code >> kXBits & ((1 << kYBits) - 1),
            N::kDimension == 2 ? 0 : code >> (kXBits + kYBits)};
  }

  // What the draws of a row have in common, for all rows: each is needed by 32 cells and more.
  __device__ void draw_rows(u32 key, FireRow* rows) const {
    const u32* origin = level.origin[sample];
    for (int row = threadIdx.x; row < kRows; row += blockDim.x) {
      rows[row] = fire_row_of(key, origin[0] + static_cast<u32>(z + row / kHeight),
                              origin[1] + static_cast<u32>(y + row % kHeight));
    }
  }
  __device__ __forceinline__ bool fires(const FireRow* rows, Place p) const {
    const u32 at = level.origin[sample][2] + static_cast<u32>(x + p.x);
    return level.threshold >= kCertain ||
           fire_draw(rows[p.z * kHeight + p.y], at) < static_cast<u32>(level.threshold);
  }

  // Copies the state of all cells that exist to shared memory, a row a warp.
  __device__ void load(const u32* state, u32* shared, int warps) const {
    constexpr int kVectors = N::kStateWords / 4;  // of 16 bytes
    const int begin = x < 0 ? -x * kVectors : 0;
    const int end = (x + kWidth > level.width ? level.width - x : kWidth) * kVectors;
    for (int row = threadIdx.x / 32; row < kRows; row += warps) {
      const Place p = {0, row % kHeight, row / kHeight};
      if (!inner && (y + p.y < 0 || y + p.y >= level.height || z + p.z < 0 ||
                     z + p.z >= level.depth)) {
        continue;
      }
      const uint4* from = reinterpret_cast<const uint4*>(state) + cell(p) * kVectors;
      uint4* to = reinterpret_cast<uint4*>(shared) + row * kWidth * kVectors;
#pragma unroll
      for (int base = 0; base < kWidth * kVectors; base += 32) {
        const int i = base + static_cast<int>(threadIdx.x % 32);
        if (i >= begin && i < end) to[i] = from[i];
      }
    }
  }
};

// Steps to a cell's neighbours before and behind it along one axis, mirrored at the level's ends;
// a cell on an axis of length 1 is its own neighbour.
__device__ __forceinline__ int before(int at, int length) {
  return at > 0 ? -1 : length > 1 ? 1 : 0;
}
__device__ __forceinline__ int behind(int at, int length) {
  return at < length - 1 ? 1 : length > 1 ? -1 : 0;
}

// A cell's neighbours as steps in the region's numbering.
template <class R>
struct Neighbours {
  int left, right, above, below, front, back;

  static __device__ __forceinline__ Neighbours of(const R& region, Place p) {
    constexpr int kPlane = R::kWidth * R::kHeight;
    const int px = region.x + p.x, py = region.y + p.y, pz = region.z + p.z;
    const Level& level = region.level;
    return {before(px, level.width),
            behind(px, level.width),
            before(py, level.height) * R::kWidth,
            behind(py, level.height) * R::kWidth,
            before(pz, level.depth) * kPlane,
            behind(pz, level.depth) * kPlane};
  }
  // No arrays: with a number that the compiler does not know they would lie in memory.
  template <int dimension>
  __device__ __forceinline__ int tap(int tap) const {
    const int x = tap % 3, y = tap / 3 % 3, z = tap / 9;
    const int plane = dimension == 2 ? 0 : z == 0 ? front : z == 2 ? back : 0;
    return plane + (y == 0 ? above : y == 2 ? below : 0) + (x == 0 ? left : x == 2 ? right : 0);
  }
};

// The same in an inner region: numbers that the compiler knows.
template <class R>
struct InnerNeighbours {
  template <int dimension>
  __device__ __forceinline__ int tap(int tap) const {
    const int x = tap % 3 - 1, y = tap / 3 % 3 - 1, z = dimension == 2 ? 0 : tap / 9 - 1;
    return (z * R::kHeight + y) * R::kWidth + x;
  }
};

// The fired cells of a box around the tile, each warp's share in a list of its own: no barrier of
// the block is needed, and the order is the same in every run.
//
//   kMargin   cells by which the box exceeds the tile
//   rows      of draw_rows
//   resting   called with every cell of the share that exists and does not fire
template <int kMargin, class N, class T, int kHalo, class Resting>
__device__ __forceinline__ int list_fired(const Region<N, T, kHalo>& region, const FireRow* rows,
                                          int warps, u16* list, const Resting& resting) {
  using R = Region<N, T, kHalo>;
  constexpr int kMarginZ = N::kDimension == 3 ? kMargin : 0;
  constexpr int kX = T::kX + 2 * kMargin, kY = T::kY + 2 * kMargin, kZ = T::kZ + 2 * kMarginZ;
  constexpr int kBox = kX * kY * kZ, kShift = kHalo - kMargin;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int share = (kBox + warps - 1) / warps;
  const int end = share * (warp + 1) < kBox ? share * (warp + 1) : kBox;
  int count = 0;
  for (int base = share * warp; base < end; base += 32) {
    const int i = base + lane, row = i / kX;
    const Place p = {i % kX + kShift, (N::kDimension == 2 ? row : row % kY) + kShift,
                     N::kDimension == 2 ? 0 : row / kY + R::kHaloZ - kMarginZ};
    const bool exists = i < end && region.inside(p);
    const bool fires = exists && region.fires(rows, p);
    const u32 fired = ballot(fires);
    if (fires) {
      list[count + count_bits(fired & ((1u << lane) - 1u))] = R::code(p);
    } else if (exists) {
      resting(p);
    }
    count += count_bits(fired);
  }
  warp_barrier();
  return count;
}

}  // namespace octreenca
