// Steps of one level, forward.
//
// A block takes a tile with its halo to shared memory. Its warps list the cells that fire and take
// them in chunks of 16 through perceive and update. The state lives in two buffers: a step reads
// one and writes the other. Several steps a launch work on shared memory, in a box that shrinks by
// a cell a step; only the last one writes.
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

// The packed weights, kept in registers where they are few.
template <class N>
struct Weights {
  using P = typename N::Precision;
  static constexpr int kBlocks = 3 * N::kGroups * N::kHiddenGroups;
  // C = 16, H = 64 in float16: 48 registers
  static constexpr bool kInRegisters = sizeof(typename P::Block) == 16 && kBlocks <= 12;

  const u32* words;
  u32 lane;
  typename P::Block kept[kInRegisters ? kBlocks : 1];

  __device__ Weights(const u32* words_, u32 lane_) : words(words_), lane(lane_) {
    if constexpr (kInRegisters) {
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        kept[i] = P::block(words + N::kHiddenBlocks + i * P::kBlockWords, lane);
      }
    }
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
  __device__ __forceinline__ Rows bias(int unit) const {
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

// One step of a box around the tile.
//
//   kLast   writes to arguments.out, else to `next` in shared memory
template <int kMargin, bool kLast, class N, class T, int kHalo>
__device__ __forceinline__ void one_step(const StepsArguments& arguments,
                                         const Region<N, T, kHalo>& region,
                                         const Weights<N>& weights,
                                         const FireRow* rows, const typename N::State* state,
                                         typename N::State* next, u16* list, int warps) {
  using P = typename N::Precision;
  using R = Region<N, T, kHalo>;
  using State = typename N::State;
  const u32 lane = threadIdx.x % 32;
  const bool labels = kLast && arguments.label_bytes != 0;
  const bool counts = kLast && arguments.non_finite != nullptr;

  const int count = list_fired<kMargin>(region, rows, warps, list, [&](Place p) {
    const State* from = state + R::index(p) * N::kPadded;
    if (counts) {
      typename P::Cell sum = P::zero();
#pragma unroll 1
      for (int c = 0; c < N::kPadded; c += 4) probe<P>(sum, P::load(from + c));
      if (!is_finite<P>(sum)) count_non_finite<N>(arguments, region, p);
    }
    if (labels) {
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
  });

  for (int chunk = 0; chunk < count; chunk += 16) {
    warp_barrier();  // the tensor cores want the lanes together, and some have just written alone
    // Beyond the list's end the last cell is computed again and written by nobody.
    const int row = chunk + static_cast<int>(lane / 4);
    const bool has_low = row < count, has_high = row + 8 < count;
    const Place low = R::place(list[has_low ? row : count - 1]);
    const Place high = R::place(list[has_high ? row + 8 : count - 1]);
    CellPair<N> centre, perceived;
    perceive<N, true>(region, state, low, high, weights.words, lane, centre, perceived);

    typename P::Operand inputs[2 * N::kGroups];
#pragma unroll
    for (int q = 0; q < N::kGroups; ++q) {
      inputs[q] = P::operand(centre.low[q], centre.high[q]);
      inputs[N::kGroups + q] = P::operand(perceived.low[q], perceived.high[q]);
    }
    Rows update[N::kGroups];
#pragma unroll
    for (int q = 0; q < N::kGroups; ++q) update[q] = {};
    constexpr int kUnroll = Weights<N>::kInRegisters ? N::kHiddenGroups : 1;
#pragma unroll kUnroll
    for (int unit = 0; unit < N::kHiddenGroups; ++unit) {
      Rows hidden = weights.bias(unit);
#pragma unroll
      for (int q = 0; q < 2 * N::kGroups; ++q) {
        P::multiply_add(hidden, inputs[q], weights.hidden(q, unit), lane);
      }
      const auto activations = P::activations(hidden);
#pragma unroll
      for (int q = 0; q < N::kGroups; ++q) {
        P::multiply_add(update[q], activations, weights.update(unit, q), lane);
      }
    }

    // Not a function of its own: called twice it would get all of this through memory.
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const bool has = second ? has_high : has_low;
      const Place p = second ? high : low;
      Best best = first_best(arguments.background);
      typename P::Cell probed = P::zero();
#pragma unroll
      for (int q = 0; q < N::kGroups; ++q) {
        float numbers[4];
        P::numbers(second ? centre.high[q] : centre.low[q], numbers);
#pragma unroll
        for (int i = 0; i < 4; ++i) numbers[i] += second ? update[q].high(i) : update[q].low(i);
        const auto changed = P::cell(numbers);
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
  }
}

// Shared memory of `forward`, in bytes.
template <class N, class T, int kSteps, int kWarps>
struct ForwardMemory {
  static constexpr int kCellBytes = 4 * N::kStateWords;
  static constexpr int kFirst = Region<N, T, kSteps>::kCells * kCellBytes;
  static constexpr int kSecond = kSteps > 1 ? kFirst : 0;
  static constexpr int kLists = (Region<N, T, kSteps - 1>::kCells + 64 * kWarps) * 2;
  static constexpr int kRows = kSteps * Region<N, T, kSteps>::kRows * 8;
  static constexpr int kBytes = kFirst + kSecond + kRows + kLists;
};

// kSteps steps of all tiles, 1 or 2.
template <class N, class T, int kSteps, int kWarps>
__device__ void forward(const StepsArguments& arguments) {
  static_assert(kSteps == 1 || kSteps == 2, "steps a launch");
  using Memory = ForwardMemory<N, T, kSteps, kWarps>;
  using State = typename N::State;
  unsigned char* memory = shared_memory();
  auto* first = reinterpret_cast<State*>(memory);
  auto* second = reinterpret_cast<State*>(memory + Memory::kFirst);
  constexpr int kShare = (Region<N, T, kSteps - 1>::kCells + kWarps - 1) / kWarps;
  auto* rows = reinterpret_cast<FireRow*>(memory + Memory::kFirst + Memory::kSecond);
  auto* list = reinterpret_cast<u16*>(memory + Memory::kBytes - Memory::kLists) +
               threadIdx.x / 32 * kShare;

  const Weights<N> weights(arguments.weights, threadIdx.x % 32);
  const u32 tiles = Tiles<T>(arguments.level).of_sample() * arguments.level.samples;
  for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const Region<N, T, kSteps> region(arguments.level, tile);
    region.load(arguments.state, reinterpret_cast<u32*>(first), kWarps);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const u32 number = arguments.first_step + step;
      region.draw_rows(level_draw_key(arguments.level, number, region.sample),
                       rows + step * region.kRows);
    }
    block_barrier();
    if constexpr (kSteps == 2) {
      one_step<1, false>(arguments, region, weights, rows, first, second, list, kWarps);
      block_barrier();
      one_step<0, true>(arguments, region, weights, rows + region.kRows, second,
                        static_cast<State*>(nullptr), list, kWarps);
    } else {
      one_step<0, true>(arguments, region, weights, rows, first, static_cast<State*>(nullptr),
                        list, kWarps);
    }
    block_barrier();
  }
}

}  // namespace octreenca
