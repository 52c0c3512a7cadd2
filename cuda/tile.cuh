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
template <class N, class T, int halo>
struct Region {
  static constexpr int kHalo = halo;
  static constexpr int kHaloZ = N::kDimension == 3 ? kHalo : 0;
  static constexpr int kWidth = T::kX + 2 * kHalo;
  static constexpr int kHeight = T::kY + 2 * kHalo;
  static constexpr int kDepth = T::kZ + 2 * kHaloZ;
  static constexpr int kCells = kWidth * kHeight * kDepth;
  static constexpr int kRows = kHeight * kDepth;
  // A place in 16 bits, for the lists of cells: to be taken apart without a division.
  static constexpr int kXBits = bits_for(kWidth), kYBits = bits_for(kHeight);
  static_assert(kXBits + kYBits + bits_for(kDepth) <= 15, "places are listed in 15 bits");

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
  static __device__ __forceinline__ Place at(int index) {
    const int row = index / kWidth;
    return {index % kWidth, N::kDimension == 2 ? row : row % kHeight,
            N::kDimension == 2 ? 0 : row / kHeight};
  }
  // The column of the region that stands for column `at`: mirrored at the level's ends, `at` itself
  // inside. Next to cells that do not exist it is any.
  __device__ __forceinline__ int mirrored_x(int at) const {
    return mirrored(x + at, level.width, x, kWidth);
  }
  __device__ __forceinline__ int mirrored_y(int at) const {
    return mirrored(y + at, level.height, y, kHeight);
  }
  static __device__ __forceinline__ int mirrored(int at, int length, int first, int count) {
    at = at < 0 ? -at : at >= length ? 2 * (length - 1) - at : at;
    at = at < 0 ? 0 : at >= length ? length - 1 : at;  // of an axis of length 1 the only cell
    at -= first;
    return at < 0 ? 0 : at >= count ? count - 1 : at;
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
  //
  //   kAsynchronous   only starts to: `copies_done` waits for the end
  template <bool kAsynchronous = false>
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
        if (i >= begin && i < end) {
          if constexpr (kAsynchronous) {
            copy_16(to + i, from + i);
          } else {
            to[i] = from[i];
          }
        }
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

// A warp's part of a box around the tile: a run of the region's cells, from the box's first to its
// last in the region's numbering. Cells of the halo between the box's rows are passed over.
template <int kMargin, int kWarps, class R, int kBanks>
struct Run {
  static constexpr int kShift = R::kHalo - kMargin;
  static constexpr int kShiftZ = R::kHaloZ == 0 ? 0 : kShift;
  static constexpr int kX = R::kWidth - 2 * kShift, kY = R::kHeight - 2 * kShift;
  static constexpr int kZ = R::kDepth - 2 * kShiftZ;
  static constexpr int kFirst = ((kShiftZ * R::kHeight + kShift) * R::kWidth + kShift) / kBanks * kBanks;
  static constexpr int kEnd =
      ((kShiftZ + kZ - 1) * R::kHeight + kShift + kY - 1) * R::kWidth + kShift + kX;
  // So many of every bank.
  static constexpr int kShare = ((kEnd - kFirst + kWarps - 1) / kWarps + kBanks - 1) / kBanks * kBanks;

  static __device__ __forceinline__ int begin(int warp) { return kFirst + warp * kShare; }
  static __device__ __forceinline__ int end(int warp) {
    return begin(warp + 1) < kEnd ? begin(warp + 1) : kEnd;
  }
  static __device__ __forceinline__ bool holds(Place p) {
    return static_cast<u32>(p.x - kShift) < static_cast<u32>(kX) &&
           static_cast<u32>(p.y - kShift) < static_cast<u32>(kY) &&
           static_cast<u32>(p.z - kShiftZ) < static_cast<u32>(kZ);
  }
};

// A place of a list that stands for no cell: the cell named there is computed and written by nobody.
constexpr u16 kNobody = 0x8000;

// What a warp has listed: entries 0 to `count` - 1 and as many more as the last 16 want.
struct FiredList {
  const u16* entries;
  int count;
};

// Fills the gaps of a list by banks, of which every lane has counted its own, lane % kBanks: with what
// other banks have too much of, then with nobody. Returns how many cells are listed.
template <int kBanks>
__device__ __forceinline__ int fill_gaps(u16* entries, int counted) {
  const int lane = threadIdx.x % 32, bank = lane % kBanks;
  int of_bank[kBanks], count = 0, least = counted, first = 0;
#pragma unroll
  for (int b = kBanks - 1; b >= 0; --b) {
    of_bank[b] = from_lane(counted, b);
    count += of_bank[b];
    if (of_bank[b] < least) least = of_bank[b];
    if (of_bank[b] > 0) first = b;
  }
  warp_barrier();  // every lane has listed its cells
  const int rows = (count + 15) / 16 * (16 / kBanks);  // of every bank, so that all find a place
  for (int place = least * kBanks + lane; place < rows * kBanks; place += 32) {
    const int gap = place / kBanks - counted;
    if (gap < 0) continue;
    int rank = gap;  // among all gaps, by bank
#pragma unroll
    for (int b = 0; b < kBanks; ++b) {
      if (b < bank && of_bank[b] < rows) rank += rows - of_bank[b];
    }
    u16 entry = entries[first] | kNobody;
#pragma unroll
    for (int b = 0; b < kBanks; ++b) {
      const int surplus = of_bank[b] > rows ? of_bank[b] - rows : 0;
      if (rank >= 0 && rank < surplus) entry = entries[(rows + rank) * kBanks + b];
      rank -= surplus;
    }
    entries[place] = entry;
  }
  warp_barrier();
  return count;
}

// The fired cells of a warp's run, by the bank of shared memory that they lie in: cell i of bank b is
// entry i * kBanks + b. So cells whose states are read together lie in different banks, and their
// neighbours too. With float16 and 16 channels four cells are read at a time: of four that are
// drawn by chance 2.1 share a bank, and the read takes so many passes.
//
//   rows      of draw_rows
//   resting   called by all lanes with 32 cells: the number of their first in the region, the
//             lane's own cell, which of them exist and do not fire, a bit each
template <class Run, int kBanks, class R, class Resting>
__device__ __forceinline__ FiredList list_by_bank(const R& region, const FireRow* rows, u16* list,
                                                  const Resting& resting) {
  const u32 lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32, bank = static_cast<int>(lane % kBanks);
  u32 alike = 0;  // lanes whose cells lie in this lane's bank
#pragma unroll
  for (int i = 0; i < 32; i += kBanks) alike |= 1u << (i + bank);
  const u32 before = alike & ((1u << lane) - 1u);
  const int end = Run::end(warp);
  int count = 0;  // of the lane's bank
  for (int base = Run::begin(warp); base < end; base += 32) {
    const int index = base + static_cast<int>(lane);
    const Place p = R::at(index);
    const bool exists = index < end && Run::holds(p) && region.inside(p);
    const bool fires = exists && region.fires(rows, p);
    const u32 fired = ballot(fires);
    if (fires) list[(count + count_bits(fired & before)) * kBanks + bank] = R::code(p);
    resting(base, p, ballot(exists && !fires));
    count += count_bits(fired & alike);
  }
  return {list, fill_gaps<kBanks>(list, count)};
}

}  // namespace octreenca
