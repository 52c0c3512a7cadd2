// Steps of one level, forward.
//
// A block takes a tile with its halo to shared memory. Its warps list the cells that fire and take
// them in chunks of 16 through perceive and update. The state lives in two buffers: a step reads
// one and writes the other. Several steps a launch work on shared memory, in a box that shrinks by
// a cell a step; only the last one writes.
//
// What is done in which order is a `Schedule`, for benchmarks/cuda_ladder.py to time one choice
// after the other; the engine's is in ops/cuda_program.py.
#pragma once

#include "tile.cuh"

namespace octreenca {

struct StepsArguments {
  Level level;
  const u32* state;  // [samples][cells][padded channels]
  void* out;         // the new state, or labels, [samples][cells]
  const u32* weights;
  // In the last launch of a level: the number of cells whose state is NaN or infinite is added
  // here, of those in the rows (planes in 3-D) from counted_first to counted_end. Null elsewhere.
  u64* non_finite;
  u32 first_step;
  int label_bytes;  // 0: a state is written; 1 or 2: labels of so many bytes
  int logits;       // K, for labels
  int background;   // label 0 where no logit is above 0
  int counted_first, counted_end;
};

// How the work is done; all of them compute the same.
//
//   kAhead_     the next tile is copied while the last step of this one runs, into the buffer that
//               the step no longer reads
//   kByBank_    fired cells are listed by the bank that they lie in
//   kPairs_     cells that rest are copied by neighbouring lanes, not by a lane each: no two lanes
//               meet in a bank, and none waits for those that copy. Needs kByBank_
//   kProduct_   the bias is a product; float16 only
//   kChunks_    chunks of 16 cells for which weights are read once
//   kDense_     no lists: every cell is computed, and those that rest keep their state. In 2-D; cells
//               are taken 8 x 4 at a time, two chunks
template <bool kAhead_, bool kByBank_, bool kPairs_, bool kProduct_, int kChunks_, bool kDense_>
struct Schedule {
  static constexpr bool kAhead = kAhead_, kByBank = kByBank_, kPairs = kPairs_;
  static constexpr bool kProduct = kProduct_, kDense = kDense_;
  static constexpr int kChunks = kChunks_;
  static_assert(kByBank || !kPairs, "cells are copied in pairs by runs");
  static_assert(!kDense || kChunks == 2, "8 x 4 cells are two chunks");
};

// The packed weights, kept in registers where they are few.
template <class N, bool kProduct = false, bool kDense = false>
struct Weights {
  using P = typename N::Precision;
  static constexpr int kBlocks = 3 * N::kGroups * N::kHiddenGroups;
  // C = 16, H = 64 in float16: 48 registers
  static constexpr bool kInRegisters = sizeof(typename P::Block) == 16 && kBlocks <= 12;
  // 18 registers; lists leave no room for them
  static constexpr bool kKeepsTaps = kDense && kInRegisters && N::kTaps * N::kGroups <= 9;

  const u32* words;
  u32 lane;
  typename P::Block kept[kInRegisters ? kBlocks : 1];
  u32 kept_bias[kProduct && kInRegisters ? 2 * N::kHiddenGroups : 1];
  typename P::Cell kept_taps[kKeepsTaps ? N::kTaps * N::kGroups : 1];

  __device__ Weights(const u32* words_, u32 lane_) : words(words_), lane(lane_) {
    if constexpr (kInRegisters) {
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        kept[i] = P::block(words + N::kHiddenBlocks + i * P::kBlockWords, lane);
      }
    }
    if constexpr (kProduct && kInRegisters) {
#pragma unroll
      for (int i = 0; i < 2 * N::kHiddenGroups; ++i) {
        kept_bias[i] = words[N::kBiasBlocks + 32 * i + lane];
      }
    }
    if constexpr (kKeepsTaps) {
#pragma unroll
      for (int i = 0; i < N::kTaps * N::kGroups; ++i) {
        kept_taps[i] = load_tap(i / N::kGroups, i % N::kGroups);
      }
    }
  }
  // Of the lane's four channels of a group.
  __device__ __forceinline__ typename P::Cell load_tap(int tap, int group) const {
    const auto* kernel = reinterpret_cast<const typename N::State*>(words + N::kPerceive);
    return P::load(kernel + tap * N::kPadded + 16 * group + 4 * (lane % 4));
  }
  __device__ __forceinline__ typename P::Cell tap(int tap, int group) const {
    if constexpr (kKeepsTaps) return kept_taps[tap * N::kGroups + group];
    return load_tap(tap, group);
  }
  // By number: first those of the hidden layer, then those of the update.
  __device__ __forceinline__ typename P::Block block(int i) const {
    if constexpr (kInRegisters) return kept[i];
    return P::block(words + N::kHiddenBlocks + i * P::kBlockWords, lane);
  }
  __device__ __forceinline__ typename P::Block hidden(int input, int unit) const {
    return block(input * N::kHiddenGroups + unit);
  }
  __device__ __forceinline__ typename P::Block update(int unit, int channel) const {
    return block(2 * N::kGroups * N::kHiddenGroups + unit * N::kGroups + channel);
  }
  // What the sums of a group of hidden units begin with.
  __device__ __forceinline__ Rows bias(int unit) const {
    if constexpr (kProduct) {
      Rows sum = {};
      u32 pair[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if constexpr (kInRegisters) {
          pair[j] = kept_bias[2 * unit + j];
        } else {
          pair[j] = words[N::kBiasBlocks + 32 * (2 * unit + j) + lane];
        }
      }
      P::add_bias(sum, pair, lane);
      return sum;
    }
    const auto* from = reinterpret_cast<const float4*>(words + N::kBias + 32 * unit) + lane % 4;
    const float4 first = from[0], second = from[4];
    return {{{first.x, first.y, first.z, first.w}, {second.x, second.y, second.z, second.w}}};
  }
};

// Two cells' four channels of every group, as they lie in memory.
template <class N>
struct CellPair {
  using P = typename N::Precision;
  typename P::Cell low[N::kGroups], high[N::kGroups];
};

// The neighbourhood of the cells at `low` and `high`, weighted: paper section 3.
template <class N, bool kInnerApart, class R>
__device__ __forceinline__ void perceive(const R& region, const typename N::State* state,
                                         Place low, Place high, const u32* weights, u32 lane,
                                         CellPair<N>& centre, CellPair<N>& perceived) {
  using P = typename N::Precision;
  const int column = 4 * (lane % 4);
  const auto* kernel = reinterpret_cast<const typename N::State*>(weights + N::kPerceive) + column;
  const auto* of_low = state + R::index(low) * N::kPadded + column;
  const auto* of_high = state + R::index(high) * N::kPadded + column;
#pragma unroll
  for (int q = 0; q < N::kGroups; ++q) {
    perceived.low[q] = perceived.high[q] = P::zero();
    centre.low[q] = P::load(of_low + 16 * q);
    centre.high[q] = P::load(of_high + 16 * q);
  }
  const auto gather = [&](const auto& low_neighbours, const auto& high_neighbours) {
    // A plane at a time: all 27 taps at once would want more registers than there are.
#pragma unroll 1
    for (int plane = 0; plane < N::kTaps / 9; ++plane) {
#pragma unroll
      for (int i = 0; i < 9; ++i) {
        const int tap = 9 * plane + i;
        const auto* a = of_low + low_neighbours.template tap<N::kDimension>(tap) * N::kPadded;
        const auto* b = of_high + high_neighbours.template tap<N::kDimension>(tap) * N::kPadded;
#pragma unroll
        for (int q = 0; q < N::kGroups; ++q) {
          const auto weight = P::load(kernel + tap * N::kPadded + 16 * q);
          P::fma(perceived.low[q], P::load(a + 16 * q), weight);
          P::fma(perceived.high[q], P::load(b + 16 * q), weight);
        }
      }
    }
  };
  if (kInnerApart && region.inner) {  // most of them: no address is computed but the cells' own
    gather(InnerNeighbours<R>{}, InnerNeighbours<R>{});
  } else {
    gather(Neighbours<R>::of(region, low), Neighbours<R>::of(region, high));
  }
}

// The label of a cell whose four lanes hold its channels; all four get it.
struct Best {
  float value;
  int label;
  __device__ void offer(float other, int its_label) {
    if (other > value || (other == value && its_label < label)) {
      value = other;
      label = its_label;
    }
  }
};
constexpr int kNoLabel = 1 << 20;

__device__ __forceinline__ Best first_best(int background) {
  return background ? Best{0.0f, 0} : Best{word_as_float(0xFF800000u), kNoLabel};
}
__device__ __forceinline__ void write_label(const StepsArguments& arguments, i64 cell, Best best) {
  const int label = best.label == kNoLabel ? 0 : best.label;  // no logit is a number
  if (arguments.label_bytes == 1) {
    static_cast<u8*>(arguments.out)[cell] = static_cast<u8>(label);
  } else {
    static_cast<u16*>(arguments.out)[cell] = static_cast<u16>(label);
  }
}

// Numbers of a state times 0, added up: 0, or NaN where one of them is NaN or infinite.
template <class P>
__device__ __forceinline__ void probe(typename P::Cell& sum, typename P::Cell cell) {
  P::fma(sum, cell, P::zero());
}
template <class P>
__device__ __forceinline__ bool is_finite(typename P::Cell probed) {
  float numbers[4];
  P::numbers(probed, numbers);
  return (numbers[0] + numbers[1]) + (numbers[2] + numbers[3]) == 0.0f;
}
template <class N, class R>
__device__ __forceinline__ void count_non_finite(const StepsArguments& arguments, const R& region,
                                                 Place p) {
  const int row = N::kDimension == 3 ? region.z + p.z : region.y + p.y;
  if (row >= arguments.counted_first && row < arguments.counted_end) add_one(arguments.non_finite);
}

// A cell that rests: its state, or what comes of it.
template <bool kLast, class N, class R>
__device__ __forceinline__ void rest(const StepsArguments& arguments, const R& region, Place p,
                                     const typename N::State* state, typename N::State* next) {
  using P = typename N::Precision;
  using State = typename N::State;
  const State* from = state + R::index(p) * N::kPadded;
  if (kLast && arguments.non_finite != nullptr) {
    typename P::Cell sum = P::zero();
#pragma unroll 1
    for (int c = 0; c < N::kPadded; c += 4) probe<P>(sum, P::load(from + c));
    if (!is_finite<P>(sum)) count_non_finite<N>(arguments, region, p);
  }
  if (kLast && arguments.label_bytes != 0) {
    Best best = first_best(arguments.background);
    for (int c = 0; c < N::kPadded; c += 4) {
      float numbers[4];
      P::numbers(P::load(from + c), numbers);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = c + i - N::kInputs;
        if (k >= 0 && k < arguments.logits) best.offer(numbers[i], k + arguments.background);
      }
    }
    write_label(arguments, region.cell(p), best);
    return;
  }
  State* to = kLast ? static_cast<State*>(arguments.out) + region.cell(p) * N::kPadded
                    : next + R::index(p) * N::kPadded;
#pragma unroll
  for (int word = 0; word < N::kStateWords; word += 4) {
    reinterpret_cast<uint4*>(to)[word / 4] = reinterpret_cast<const uint4*>(from)[word / 4];
  }
}

// The states of those of 32 cells that rest, 16 bytes a lane.
template <bool kLast, class N, class R>
__device__ __forceinline__ void copy_resting(const StepsArguments& arguments, const R& region,
                                             int base, u32 resting,
                                             const typename N::State* state,
                                             typename N::State* next) {
  constexpr int kVectors = N::kStateWords / 4;
  const auto* from = reinterpret_cast<const uint4*>(state) + base * kVectors;
#pragma unroll
  for (int turn = 0; turn < kVectors; ++turn) {
    const int i = 32 * turn + static_cast<int>(threadIdx.x % 32);
    if (resting >> (i / kVectors) & 1u) {
      uint4* to = reinterpret_cast<uint4*>(next) + base * kVectors + i;
      if (kLast) {
        to = static_cast<uint4*>(arguments.out) +
             region.cell(R::at(base + i / kVectors)) * kVectors + i % kVectors;
      }
      *to = from[i];
    }
  }
}

// Lists the fired cells of a box, and does what has to be done with those that rest.
template <int kMargin, bool kLast, class S, int kWarps, class N, class T, int kHalo>
__device__ __forceinline__ FiredList list_and_rest(const StepsArguments& arguments,
                                                   const Region<N, T, kHalo>& region,
                                                   const FireRow* rows,
                                                   const typename N::State* state,
                                                   typename N::State* next, u16* list) {
  using R = Region<N, T, kHalo>;
  if constexpr (S::kByBank) {
    using Box = Run<kMargin, kWarps, R, N::kBanks>;
    const bool looked_at =
        kLast && (arguments.label_bytes != 0 || arguments.non_finite != nullptr);
    return list_by_bank<Box, N::kBanks>(region, rows, list, [&](int base, Place p, u32 resting) {
      if (S::kPairs && !looked_at) {
        copy_resting<kLast, N>(arguments, region, base, resting, state, next);
      } else if (resting >> (threadIdx.x % 32) & 1u) {
        rest<kLast, N>(arguments, region, p, state, next);
      }
    });
  } else {
    const int count = list_fired<kMargin>(region, rows, kWarps, list, [&](Place p) {
      rest<kLast, N>(arguments, region, p, state, next);
    });
    const int lane = threadIdx.x % 32;
    if (count > 0 && lane < (count + 15) / 16 * 16 - count) {
      list[count + lane] = list[count - 1] | kNobody;
    }
    warp_barrier();
    return {list, count};
  }
}

// What fired becomes of: its new state, or its label. All four lanes of a cell call it.
//
//   has     the cell is to be written
//   fires   it changes; else it keeps its state
template <bool kLast, class N, class R>
__device__ __forceinline__ void write_fired(const StepsArguments& arguments, const R& region,
                                            Place p, bool has, bool fires, bool second,
                                            const CellPair<N>& centre, const Rows* update,
                                            typename N::State* next) {
  using P = typename N::Precision;
  using State = typename N::State;
  const u32 lane = threadIdx.x % 32;
  const bool labels = kLast && arguments.label_bytes != 0;
  const bool counts = kLast && arguments.non_finite != nullptr;
  Best best = first_best(arguments.background);
  typename P::Cell probed = P::zero();
#pragma unroll
  for (int q = 0; q < N::kGroups; ++q) {
    float numbers[4];
    const auto before = second ? centre.high[q] : centre.low[q];
    P::numbers(before, numbers);
#pragma unroll
    for (int i = 0; i < 4; ++i) numbers[i] += second ? update[q].high(i) : update[q].low(i);
    const auto changed = fires ? P::cell(numbers) : before;
    if (counts) probe<P>(probed, changed);
    const int c = 16 * q + 4 * static_cast<int>(lane % 4);
    if (labels) {
      P::numbers(changed, numbers);  // as a state would hold them
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = c + i - N::kInputs;
        if (k >= 0 && k < arguments.logits) best.offer(numbers[i], k + arguments.background);
      }
    } else if (has) {
      State* to = kLast ? static_cast<State*>(arguments.out) + region.cell(p) * N::kPadded
                        : next + R::index(p) * N::kPadded;
      P::store(to + c, changed);
    }
  }
  if (counts) {
    const u32 wrong = ballot(!is_finite<P>(probed)) >> (lane / 4 * 4) & 0xFu;  // of the cell
    if (has && wrong != 0 && lane % 4 == 0) count_non_finite<N>(arguments, region, p);
  }
  if (labels) {
#pragma unroll
    for (u32 apart = 1; apart < 4; apart *= 2) {
      best.offer(from_lane(best.value, lane ^ apart), from_lane(best.label, lane ^ apart));
    }
    if (has && lane % 4 == 0) write_label(arguments, region.cell(p), best);
  }
}

// Inputs of the two layers to the changes of 16 cells' states, chunk by chunk. Of several chunks
// the later ones are left out where there are no cells for them.
template <int kChunks, class N, class W>
__device__ __forceinline__ void update_chunks(const W& weights, u32 lane, int chunks,
                                              const typename N::Precision::Operand* inputs,
                                              Rows* update) {
  using P = typename N::Precision;
#pragma unroll
  for (int i = 0; i < kChunks * N::kGroups; ++i) update[i] = {};
  constexpr int kUnroll = W::kInRegisters ? N::kHiddenGroups : 1;
#pragma unroll kUnroll
  for (int unit = 0; unit < N::kHiddenGroups; ++unit) {
    Rows hidden[kChunks];
    hidden[0] = weights.bias(unit);
#pragma unroll
    for (int chunk = 1; chunk < kChunks; ++chunk) hidden[chunk] = hidden[0];
#pragma unroll
    for (int q = 0; q < 2 * N::kGroups; ++q) {
      const auto block = weights.hidden(q, unit);
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        if (chunk < chunks) {
          P::multiply_add(hidden[chunk], inputs[chunk * 2 * N::kGroups + q], block, lane);
        }
      }
    }
    typename P::Operand activations[kChunks];
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      activations[chunk] = P::activations(hidden[chunk]);
    }
#pragma unroll
    for (int q = 0; q < N::kGroups; ++q) {
      const auto block = weights.update(unit, q);
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        if (chunk < chunks) {
          P::multiply_add(update[chunk * N::kGroups + q], activations[chunk], block, lane);
        }
      }
    }
  }
}

// One step of a box around the tile, from lists of the cells that fire.
//
//   kLast   writes to arguments.out, else to `next` in shared memory
template <int kMargin, bool kLast, class S, int kWarps, class N, class T, int kHalo>
__device__ __forceinline__ void listed_step(const StepsArguments& arguments,
                                         const Region<N, T, kHalo>& region,
                                         const Weights<N, S::kProduct, S::kDense>& weights,
                                         const FireRow* rows, const typename N::State* state,
                                         typename N::State* next, u16* list) {
  using P = typename N::Precision;
  using R = Region<N, T, kHalo>;
  const u32 lane = threadIdx.x % 32;
  const auto fired =
      list_and_rest<kMargin, kLast, S, kWarps>(arguments, region, rows, state, next, list);

  for (int first = 0; first < fired.count; first += 16 * S::kChunks) {
    warp_barrier();  // the tensor cores want the lanes together, and some have just written alone
    const int chunks = first + 16 < fired.count ? S::kChunks : 1;
    Place low[S::kChunks], high[S::kChunks];
    bool has_low[S::kChunks], has_high[S::kChunks];
    CellPair<N> centre[S::kChunks];
    typename P::Operand inputs[S::kChunks * 2 * N::kGroups];
#pragma unroll
    for (int chunk = 0; chunk < S::kChunks; ++chunk) {
      if (chunk < chunks) {
        const u16* entries = fired.entries + first + 16 * chunk + lane / 4;
        has_low[chunk] = (entries[0] & kNobody) == 0;
        has_high[chunk] = (entries[8] & kNobody) == 0;
        low[chunk] = R::place(entries[0] & (kNobody - 1));
        high[chunk] = R::place(entries[8] & (kNobody - 1));
        CellPair<N> perceived;
        perceive<N, true>(region, state, low[chunk], high[chunk], weights.words, lane,
                          centre[chunk], perceived);
#pragma unroll
        for (int q = 0; q < N::kGroups; ++q) {
          auto* of_chunk = inputs + chunk * 2 * N::kGroups;
          of_chunk[q] = P::operand(centre[chunk].low[q], centre[chunk].high[q]);
          of_chunk[N::kGroups + q] = P::operand(perceived.low[q], perceived.high[q]);
        }
      }
    }
    Rows update[S::kChunks * N::kGroups];
    update_chunks<S::kChunks, N>(weights, lane, chunks, inputs, update);
    // Once for the low rows, once for the high ones: four calls of a function would pass all of
    // this through memory.
#pragma unroll
    for (int chunk = 0; chunk < S::kChunks; ++chunk) {
      if (chunk >= chunks) continue;
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        write_fired<kLast, N>(arguments, region, second ? high[chunk] : low[chunk],
                              second ? has_high[chunk] : has_low[chunk], true, second != 0,
                              centre[chunk], update + chunk * N::kGroups, next);
      }
    }
  }
}

// Cells of a block: 8 across and 4 down, so that a lane's cells lie below one another.
constexpr int kAcross = 8, kDown = 4;

// The neighbourhoods of a block's cells, weighted. A row that is read serves the up to three rows of
// cells around it: 18 reads, where cell by cell it would be 36. Every sum is that of `perceive`.
//
//   at        the lane's cell of a row of the region (-1 to 4, as the block counts) and of a column
//             beside it (-1 to 1), as a number in the region
template <class N, class W, class At>
__device__ __forceinline__ void perceive_block(const typename N::State* state, const W& weights,
                                               const At& at, CellPair<N>* centre,
                                               CellPair<N>* perceived) {
  using P = typename N::Precision;
  const auto* channels = state + 4 * (weights.lane % 4);
#pragma unroll
  for (int q = 0; q < N::kGroups; ++q) {
#pragma unroll
    for (int k = 0; k < kDown; ++k) {
      (k % 2 ? perceived[k / 2].high : perceived[k / 2].low)[q] = P::zero();
    }
#pragma unroll
    for (int row = -1; row <= kDown; ++row) {
#pragma unroll
      for (int column = -1; column <= 1; ++column) {
        const auto cell = P::load(channels + at(row, column) * N::kPadded + 16 * q);
        if (column == 0 && row >= 0 && row < kDown) {
          (row % 2 ? centre[row / 2].high : centre[row / 2].low)[q] = cell;
        }
#pragma unroll
        for (int k = row - 1; k <= row + 1; ++k) {
          if (k < 0 || k >= kDown) continue;
          P::fma((k % 2 ? perceived[k / 2].high : perceived[k / 2].low)[q], cell,
                 weights.tap(3 * (row - k + 1) + column + 1, q));
        }
      }
    }
  }
}

// The same step without lists: all cells of the box in blocks, of which a warp takes one after the
// other. Of a box that is no multiple of blocks the last ones overlap those before them.
template <int kMargin, bool kLast, class S, int kWarps, class N, class T, int kHalo>
__device__ __forceinline__ void dense_step(const StepsArguments& arguments,
                                           const Region<N, T, kHalo>& region,
                                           const Weights<N, S::kProduct, true>& weights,
                                           const FireRow* rows, const typename N::State* state,
                                           typename N::State* next) {
  using P = typename N::Precision;
  using R = Region<N, T, kHalo>;
  static_assert(N::kDimension == 2, "blocks are of 2-D tiles");
  constexpr int kShift = kHalo - kMargin, kX = T::kX + 2 * kMargin, kY = T::kY + 2 * kMargin;
  static_assert(kX >= kAcross && kY >= kDown, "a block lies in the box");
  constexpr int kColumns = (kX + kAcross - 1) / kAcross, kRows = (kY + kDown - 1) / kDown;
  const u32 lane = threadIdx.x % 32;
  const int g = static_cast<int>(lane / 4), t = static_cast<int>(lane % 4);
  for (int block = threadIdx.x / 32; block < kColumns * kRows; block += kWarps) {
    const int wanted_x = block % kColumns * kAcross, wanted_y = block / kColumns * kDown;
    const int x = (wanted_x < kX - kAcross ? wanted_x : kX - kAcross) + kShift;
    const int y = (wanted_y < kY - kDown ? wanted_y : kY - kDown) + kShift;
    // Lane (g, t) draws for column g and row t.
    const Place drawn = {x + g, y + t, 0};
    const bool exists = drawn.x >= wanted_x + kShift && drawn.y >= wanted_y + kShift &&
                        region.inside(drawn);
    const u32 existing = ballot(exists);
    const u32 fired = ballot(exists && region.fires(rows, drawn));
    if (existing == 0) continue;  // behind the level's end

    CellPair<N> centre[2], perceived[2];
    if (region.inner) {
      const int own = R::index({x + g, y, 0});
      perceive_block<N>(
          state, weights, [&](int row, int column) { return own + row * R::kWidth + column; },
          centre, perceived);
    } else {
      perceive_block<N>(
          state, weights,
          [&](int row, int column) {
            return region.mirrored_y(y + row) * R::kWidth + region.mirrored_x(x + g + column);
          },
          centre, perceived);
    }
    // Together where weights are read for them, else one after the other: fewer sums are kept.
    constexpr int kTogether = Weights<N, S::kProduct, true>::kInRegisters ? 1 : 2;
#pragma unroll
    for (int first = 0; first < 2; first += kTogether) {
      typename P::Operand inputs[kTogether * 2 * N::kGroups];
      Rows update[kTogether * N::kGroups];
#pragma unroll
      for (int i = 0; i < kTogether * N::kGroups; ++i) {
        const int chunk = first + i / N::kGroups, q = i % N::kGroups;
        auto* of_chunk = inputs + i / N::kGroups * 2 * N::kGroups;
        of_chunk[q] = P::operand(centre[chunk].low[q], centre[chunk].high[q]);
        of_chunk[N::kGroups + q] = P::operand(perceived[chunk].low[q], perceived[chunk].high[q]);
      }
      update_chunks<kTogether, N>(weights, lane, kTogether, inputs, update);
#pragma unroll
      for (int k = 2 * first; k < 2 * (first + kTogether); ++k) {
        const u32 bit = 1u << (4 * g + k);
        write_fired<kLast, N>(arguments, region, {x + g, y + k, 0}, (existing & bit) != 0,
                              (fired & bit) != 0, k % 2 != 0, centre[k / 2],
                              update + (k / 2 - first) * N::kGroups, next);
      }
    }
  }
}

// One step, as the schedule says.
template <int kMargin, bool kLast, class S, int kWarps, class N, class T, int kHalo>
__device__ __forceinline__ void step_of(const StepsArguments& arguments,
                                        const Region<N, T, kHalo>& region,
                                        const Weights<N, S::kProduct, S::kDense>& weights,
                                        const FireRow* rows, const typename N::State* state,
                                        typename N::State* next, u16* list) {
  if constexpr (S::kDense) {
    dense_step<kMargin, kLast, S, kWarps>(arguments, region, weights, rows, state, next);
  } else {
    listed_step<kMargin, kLast, S, kWarps>(arguments, region, weights, rows, state, next, list);
  }
}

// Shared memory of `forward`, in bytes.
template <class N, class T, int kSteps, int kWarps, bool kDense>
struct ForwardMemory {
  using R = Region<N, T, kSteps>;
  static constexpr int kCellBytes = 4 * N::kStateWords;
  static constexpr int kFirst = R::kCells * kCellBytes;
  static constexpr int kSecond = kSteps > 1 ? kFirst : 0;
  static constexpr int kLists = kDense ? 0 : (R::kCells + 64 * kWarps) * 2;
  static constexpr int kRows = kSteps * R::kRows * 8;
  static constexpr int kBytes = kFirst + kSecond + kRows + kLists;
  static constexpr int kShare = kLists / 2 / kWarps;  // entries of a warp's list
  static_assert(kDense || Run<kSteps - 1, kWarps, R, N::kBanks>::kShare + 15 <= kShare,
                "all cells may fire");
};

// kSteps steps of all tiles, 1 or 2.
template <class N, class T, int kSteps, int kWarps, class S>
__device__ void forward(const StepsArguments& arguments) {
  static_assert(kSteps == 1 || kSteps == 2, "steps a launch");
  using Memory = ForwardMemory<N, T, kSteps, kWarps, S::kDense>;
  using R = Region<N, T, kSteps>;
  using State = typename N::State;
  constexpr bool kAhead = S::kAhead && kSteps == 2;
  unsigned char* memory = shared_memory();
  auto* first = reinterpret_cast<State*>(memory);
  auto* second = reinterpret_cast<State*>(memory + Memory::kFirst);
  auto* rows = reinterpret_cast<FireRow*>(memory + Memory::kFirst + Memory::kSecond);
  auto* list = reinterpret_cast<u16*>(memory + Memory::kBytes - Memory::kLists) +
               threadIdx.x / 32 * Memory::kShare;
  const auto draw_rows = [&](const R& region, int step) {
    region.draw_rows(
        level_draw_key(arguments.level, arguments.first_step + step, region.sample),
        rows + step * R::kRows);
  };
  const auto load = [&](const R& region) {
    region.template load<S::kAhead>(arguments.state, reinterpret_cast<u32*>(first), kWarps);
  };

  const Weights<N, S::kProduct, S::kDense> weights(arguments.weights, threadIdx.x % 32);
  const u32 tiles = Tiles<T>(arguments.level).of_sample() * arguments.level.samples;
  if (kAhead && blockIdx.x < tiles) {
    const R region(arguments.level, blockIdx.x);
    load(region);
    draw_rows(region, 0);
  }
  for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const R region(arguments.level, tile);
    if constexpr (!kAhead) {
      load(region);
      draw_rows(region, 0);
      if (kSteps == 2) draw_rows(region, 1);
    }
    if constexpr (S::kAhead) copies_done();
    block_barrier();
    if constexpr (kSteps == 2) {
      if constexpr (kAhead) draw_rows(region, 1);  // the last tile's second step has read them
      step_of<1, false, S, kWarps>(arguments, region, weights, rows, first, second, list);
      block_barrier();
      if (kAhead && gridDim.x < tiles - tile) {
        const R next(arguments.level, tile + gridDim.x);
        load(next);
        draw_rows(next, 0);
      }
      step_of<0, true, S, kWarps>(arguments, region, weights, rows + R::kRows, second,
                                   static_cast<State*>(nullptr), list);
    } else {
      step_of<0, true, S, kWarps>(arguments, region, weights, rows, first,
                                   static_cast<State*>(nullptr), list);
    }
    if constexpr (!kAhead) block_barrier();
  }
}

}  // namespace octreenca
