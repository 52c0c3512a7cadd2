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

__device__ __forceinline__ u32 level_draw_key(const Level& level, u32 step, u32 sample) {
  return draw_key(level.seed, level.level, step, level.first_sample + sample);
}

// The tile with its halo; cells are numbered inside it, halo included, also where the level ends.
template <class N, class T, int kHalo>
struct Region {
  static constexpr int kHaloZ = N::kDimension == 3 ? kHalo : 0;
  static constexpr int kWidth = T::kX + 2 * kHalo;
  static constexpr int kHeight = T::kY + 2 * kHalo;
  static constexpr int kDepth = T::kZ + 2 * kHaloZ;
  static constexpr int kCells = kWidth * kHeight * kDepth;
  static_assert(kCells < 65536, "cells of a region are listed in 16 bits");

  const Level& level;
  u32 sample;  // of the launch
  int x, y, z;  // level coordinates of the region's first cell

  __device__ Region(const Level& level_, u32 tile) : level(level_) {
    const Tiles<T> tiles(level);
    sample = tile / tiles.of_sample();
    tile %= tiles.of_sample();
    x = static_cast<int>(tile % tiles.x) * T::kX - kHalo;
    y = static_cast<int>(tile / tiles.x % tiles.y) * T::kY - kHalo;
    z = static_cast<int>(tile / (tiles.x * tiles.y)) * T::kZ - kHaloZ;
  }

  __device__ bool inside(int lx, int ly, int lz) const {
    return x + lx >= 0 && x + lx < level.width && y + ly >= 0 && y + ly < level.height &&
           z + lz >= 0 && z + lz < level.depth;
  }
  // Number of a cell in all samples of the launch.
  __device__ i64 cell(int lx, int ly, int lz) const {
    const i64 plane = static_cast<i64>(sample) * level.depth + z + lz;
    return (plane * level.height + y + ly) * level.width + x + lx;
  }
  __device__ static int index(int lx, int ly, int lz) {
    return (lz * kHeight + ly) * kWidth + lx;
  }

  __device__ bool fires(u32 key, int lx, int ly, int lz) const {
    if (level.threshold >= kCertain) return true;
    const u32* origin = level.origin[sample];
    u8 fired;
    fire_row(&fired, 1, key, origin[0] + static_cast<u32>(z + lz),
             origin[1] + static_cast<u32>(y + ly), origin[2] + static_cast<u32>(x + lx),
             level.threshold);
    return fired;
  }

  // Copies the state of all cells that exist to shared memory.
  __device__ void load(const u32* state, u32* shared) const {
    constexpr int kVectors = N::kStateWords / 4;  // of 16 bytes
    for (int i = threadIdx.x; i < kCells * kVectors; i += blockDim.x) {
      const int at = i / kVectors, vector = i % kVectors;
      const int lx = at % kWidth, ly = at / kWidth % kHeight, lz = at / (kWidth * kHeight);
      if (!inside(lx, ly, lz)) continue;
      reinterpret_cast<uint4*>(shared)[i] =
          reinterpret_cast<const uint4*>(state)[cell(lx, ly, lz) * kVectors + vector];
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
struct Neighbours {
  int left, right, above, below, front, back;

  template <class R>
  static __device__ __forceinline__ Neighbours of(const R& region, int lx, int ly, int lz) {
    constexpr int kPlane = R::kWidth * R::kHeight;
    const int px = region.x + lx, py = region.y + ly, pz = region.z + lz;
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

// The fired cells of a box around the tile, each warp's share in a list of its own: no barrier of
// the block is needed, and the order is the same in every run.
//
//   kMargin   cells by which the box exceeds the tile
//   resting   called with every cell of the share that exists and does not fire
template <int kMargin, class N, class T, int kHalo, class Resting>
__device__ __forceinline__ int list_fired(const Region<N, T, kHalo>& region, u32 key, int warps,
                                          u16* list, const Resting& resting) {
  using R = Region<N, T, kHalo>;
  constexpr int kMarginZ = N::kDimension == 3 ? kMargin : 0;
  constexpr int kX = T::kX + 2 * kMargin, kY = T::kY + 2 * kMargin, kZ = T::kZ + 2 * kMarginZ;
  constexpr int kBox = kX * kY * kZ;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int share = (kBox + warps - 1) / warps;
  const int end = share * (warp + 1) < kBox ? share * (warp + 1) : kBox;
  int count = 0;
  for (int base = share * warp; base < end; base += 32) {
    const int i = base + lane;
    const int lx = i % kX + kHalo - kMargin, ly = i / kX % kY + kHalo - kMargin;
    const int lz = i / (kX * kY) + R::kHaloZ - kMarginZ;
    const bool exists = i < end && region.inside(lx, ly, lz);
    const bool fires = exists && region.fires(key, lx, ly, lz);
    const u32 fired = ballot(fires);
    if (fires) {
      list[count + count_bits(fired & ((1u << lane) - 1u))] =
          static_cast<u16>(R::index(lx, ly, lz));
    } else if (exists) {
      resting(lx, ly, lz);
    }
    count += count_bits(fired);
  }
  warp_barrier();
  return count;
}

}  // namespace octreenca
