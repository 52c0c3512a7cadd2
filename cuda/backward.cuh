// The gradient of one step, from the state it began with.
//
// `backward_cells` lists the fired cells of a tile as the forward pass does, computes their hidden
// units again, and from the gradient of their update that of their inputs. What they owe to the
// state they perceived goes to a buffer of its own, from which `backward_perceive` gathers. The
// weights' gradients are those of weight_gradients.cuh.
#pragma once

#include "forward.cuh"
#include "weight_gradients.cuh"

namespace octreenca {

struct BackwardArguments {
  Level level;
  const u32* state;   // before the step, [samples][cells][padded channels]
  float* gradient;    // of the state after the step; becomes that of the state before
  float* perceived;   // gradient of what every cell perceived, zero where it does not fire
  const u32* weights;
  float* sums;        // [blocks][kSums], added to
  u32 step;
  u32 unused;
};

__device__ __forceinline__ void put(float* to, const float* from) {
  *reinterpret_cast<float4*>(to) = {from[0], from[1], from[2], from[3]};
}

__device__ __forceinline__ void put_low(float* to, const Rows& rows) {
  *reinterpret_cast<float4*>(to) = {rows.low(0), rows.low(1), rows.low(2), rows.low(3)};
}
__device__ __forceinline__ void put_high(float* to, const Rows& rows) {
  *reinterpret_cast<float4*>(to) = {rows.high(0), rows.high(1), rows.high(2), rows.high(3)};
}

template <class N, class T, int kWarps>
struct BackwardMemory {
  static constexpr int kCells = Region<N, T, 1>::kCells;
  static constexpr int kState = kCells * N::kPadded * 4;
  static constexpr int kStages = kWarps * Stage<N>::kNumbers * 4;
  static constexpr int kShare = (T::kX * T::kY * T::kZ + kWarps - 1) / kWarps;
  static constexpr int kCounts = kWarps * 4;
  static constexpr int kRows = Region<N, T, 1>::kRows * 8;
  static constexpr int kBytes = kState + kStages + kRows + kCounts + 2 * kWarps * kShare;
};

template <class N, class T, int kWarps>
__device__ void backward_cells(const BackwardArguments& arguments) {
  using P = typename N::Precision;
  using R = Region<N, T, 1>;
  using Memory = BackwardMemory<N, T, kWarps>;
  using S = Sums<N, kWarps>;
  static_assert(sizeof(typename N::State) == 4, "gradients are computed in float32");
  constexpr int kThreads = 32 * kWarps;
  constexpr int kItems = N::kTaps * N::kPadded / 4;  // (tap, four channels)
  constexpr int kTurns = (kItems + 31) / 32;
  constexpr int kBiases = (N::kHiddenPadded + kThreads - 1) / kThreads;

  unsigned char* memory = shared_memory();
  auto* state = reinterpret_cast<float*>(memory);
  auto* stages = reinterpret_cast<float*>(memory + Memory::kState);
  auto* draws = reinterpret_cast<FireRow*>(memory + Memory::kState + Memory::kStages);
  auto* counts = reinterpret_cast<int*>(draws + R::kRows);
  const u32 lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32, g = static_cast<int>(lane / 4);
  const int column = 4 * static_cast<int>(lane % 4);
  auto* list = reinterpret_cast<u16*>(counts + kWarps) + warp * Memory::kShare;
  const Stage<N> mine{stages + warp * Stage<N>::kNumbers};
  float* sums = arguments.sums + static_cast<i64>(blockIdx.x) * S::kCount;

  const Weights<N> weights(arguments.weights, lane);
  const auto update_transposed = [&](int channel, int unit) {
    return P::block(arguments.weights + N::kUpdateTransposed +
                        (channel * N::kHiddenGroups + unit) * P::kBlockWords, lane);
  };
  const auto hidden_transposed = [&](int unit, int input) {
    return P::block(arguments.weights + N::kHiddenTransposed +
                        (unit * 2 * N::kGroups + input) * P::kBlockWords, lane);
  };
  WeightSums<N, kThreads> weight_sums;
  float bias_sums[kBiases] = {}, kernel_sums[kTurns][4] = {};

  const u32 tiles = Tiles<T>(arguments.level).of_sample() * arguments.level.samples;
  for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const R region(arguments.level, tile);
    region.load(arguments.state, reinterpret_cast<u32*>(state), kWarps);
    region.draw_rows(level_draw_key(arguments.level, arguments.step, region.sample), draws);
    block_barrier();
    const int count = list_fired<0>(region, draws, kWarps, list, [&](Place p) {
      auto* to = reinterpret_cast<float4*>(arguments.perceived + region.cell(p) * N::kPadded);
#pragma unroll
      for (int c = 0; c < N::kPadded / 4; ++c) to[c] = {0.0f, 0.0f, 0.0f, 0.0f};
    });
    if (lane == 0) counts[warp] = count;
    block_barrier();
    int most = 0;
    for (int w = 0; w < kWarps; ++w) most = counts[w] > most ? counts[w] : most;

    for (int chunk = 0; chunk < most; chunk += 16) {
      const int rows = count - chunk < 16 ? count - chunk : 16;
      if (rows > 0) {
        warp_barrier();  // the tensor cores want the lanes together
        const bool has_low = g < rows, has_high = g + 8 < rows;
        const Place low = R::place(list[chunk + (has_low ? g : rows - 1)]);
        const Place high = R::place(list[chunk + (has_high ? g + 8 : rows - 1)]);
        float* grad_low = arguments.gradient + region.cell(low) * N::kPadded + column;
        float* grad_high = arguments.gradient + region.cell(high) * N::kPadded + column;

        typename P::Operand inputs[2 * N::kGroups], grad_update[N::kGroups];
        {
          CellPair<N> centre, perceived;
          perceive<N, false>(region, state, low, high, arguments.weights, lane, centre, perceived);
#pragma unroll
          for (int q = 0; q < N::kGroups; ++q) {
            inputs[q] = P::operand(centre.low[q], centre.high[q]);
            inputs[N::kGroups + q] = P::operand(perceived.low[q], perceived.high[q]);
            const auto of_low = P::load(grad_low + 16 * q), of_high = P::load(grad_high + 16 * q);
            grad_update[q] = P::operand(of_low, of_high);
            P::store(mine.inputs(g) + 16 * q + column, centre.low[q]);
            P::store(mine.inputs(g + 8) + 16 * q + column, centre.high[q]);
            P::store(mine.inputs(g) + N::kPadded + 16 * q + column, perceived.low[q]);
            P::store(mine.inputs(g + 8) + N::kPadded + 16 * q + column, perceived.high[q]);
            P::store(mine.grad_update(g) + 16 * q + column, of_low);
            P::store(mine.grad_update(g + 8) + 16 * q + column, of_high);
          }
        }
        Rows grad_inputs[2 * N::kGroups];
#pragma unroll
        for (int q = 0; q < 2 * N::kGroups; ++q) grad_inputs[q] = {};
#pragma unroll 1
        for (int unit = 0; unit < N::kHiddenGroups; ++unit) {
          Rows hidden = weights.bias(unit), grad_hidden = {};
#pragma unroll
          for (int q = 0; q < 2 * N::kGroups; ++q) {
            P::multiply_add(hidden, inputs[q], weights.hidden(q, unit), lane);
          }
#pragma unroll
          for (int q = 0; q < N::kGroups; ++q) {
            P::multiply_add(grad_hidden, grad_update[q], update_transposed(q, unit), lane);
          }
          hidden = relu(hidden);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (!(hidden.low(i) > 0.0f)) grad_hidden.low(i) = 0.0f;
            if (!(hidden.high(i) > 0.0f)) grad_hidden.high(i) = 0.0f;
          }
          put_low(mine.hidden(g) + 16 * unit + column, hidden);
          put_high(mine.hidden(g + 8) + 16 * unit + column, hidden);
          put_low(mine.grad_hidden(g) + 16 * unit + column, grad_hidden);
          put_high(mine.grad_hidden(g + 8) + 16 * unit + column, grad_hidden);
          const auto operand = P::operand(grad_hidden);
#pragma unroll
          for (int q = 0; q < 2 * N::kGroups; ++q) {
            P::multiply_add(grad_inputs[q], operand, hidden_transposed(unit, q), lane);
          }
        }
#pragma unroll
        for (int q = 0; q < 2 * N::kGroups; ++q) {
          const bool second = q >= N::kGroups;
          const int group = second ? q - N::kGroups : q, row = second ? g + 8 : g;
          const Rows &of_own = grad_inputs[group], &of_perceived = grad_inputs[N::kGroups + group];
          float owed[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) owed[i] = second ? of_perceived.high(i) : of_perceived.low(i);
          put(mine.grad_perceived(row) + 16 * group + column, owed);
          if (second ? has_high : has_low) {
            float* gradient = (second ? grad_high : grad_low) + 16 * group;
            float numbers[4];
            P::numbers(P::load(gradient), numbers);
#pragma unroll
            for (int i = 0; i < 4; ++i) numbers[i] += second ? of_own.high(i) : of_own.low(i);
            put(gradient, numbers);
            put(arguments.perceived + (gradient - arguments.gradient), owed);
          }
        }
        warp_barrier();

        // The kernel's gradient: a lane has a tap and four channels, and goes through the cells.
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
          const int item = 32 * turn + static_cast<int>(lane);
          if (item < kItems) {
            const int tap = item / (N::kPadded / 4), channel = item % (N::kPadded / 4) * 4;
            for (int row = 0; row < rows; ++row) {
              const Place p = R::place(list[chunk + row]);
              const auto neighbours = Neighbours<R>::of(region, p);
              const int at = R::index(p) + neighbours.template tap<N::kDimension>(tap);
              float x[4], grad[4];
              P::numbers(P::load(state + at * N::kPadded + channel), x);
              P::numbers(P::load(mine.grad_perceived(row) + channel), grad);
#pragma unroll
              for (int i = 0; i < 4; ++i) kernel_sums[turn][i] += x[i] * grad[i];
            }
          }
        }
      }
      block_barrier();
      for (int w = 0; w < kWarps; ++w) {
        const int staged = counts[w] - chunk < 16 ? counts[w] - chunk : 16;
        if (staged <= 0) continue;
        const Stage<N> stage{stages + w * Stage<N>::kNumbers};
        weight_sums.add(stage, staged, sums);
#pragma unroll
        for (int i = 0; i < kBiases; ++i) {
          const int unit = i * kThreads + static_cast<int>(threadIdx.x);
          if (unit >= N::kHiddenPadded) continue;
          for (int row = 0; row < staged; ++row) bias_sums[i] += stage.grad_hidden(row)[unit];
        }
      }
      block_barrier();
    }
    block_barrier();
  }

  weight_sums.finish(sums);
#pragma unroll
  for (int i = 0; i < kBiases; ++i) {
    const int unit = i * kThreads + static_cast<int>(threadIdx.x);
    if (unit < N::kHiddenPadded) sums[S::kBias + unit] += bias_sums[i];
  }
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int item = 32 * turn + static_cast<int>(lane);
    if (item >= kItems) continue;
    float* to = sums + S::kPerceive + warp * N::kTaps * N::kPadded + 4 * item;
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] += kernel_sums[turn][i];
  }
}

// Which taps (bits 0 to 2) of the cell `at + offset` meet the cell `at` along one axis.
__device__ __forceinline__ int meeting_taps(int at, int offset, int length) {
  const int from = at + offset;
  if (from < 0 || from >= length) return 0;
  int taps = offset == 0 ? 2 : 0;
  if (from + before(from, length) == at) taps |= 1;
  if (from + behind(from, length) == at) taps |= 4;
  return taps;
}

// Adds to every cell's gradient what those that perceived it owe: the adjoint of perceive, gathered.
// A thread has four channels of a cell.
template <class N>
__device__ void backward_perceive(const BackwardArguments& arguments) {
  const Level& level = arguments.level;
  constexpr int kQuads = N::kPadded / 4;
  constexpr int kReachZ = N::kDimension == 3 ? 1 : 0;
  const auto* kernel = reinterpret_cast<const float*>(arguments.weights + N::kPerceive);
  const i64 total = level.samples * level.cells() * kQuads;
  const i64 stride = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += stride) {
    const int channel = static_cast<int>(i % kQuads) * 4;
    const i64 cell = i / kQuads, row = cell / level.width;
    const int x = static_cast<int>(cell % level.width);
    const int y = static_cast<int>(row % level.height);
    const int z = static_cast<int>(row / level.height % level.depth);
    const auto weight = [&](int tap) {
      return *reinterpret_cast<const float4*>(kernel + tap * N::kPadded + channel);
    };
    const auto owed = [&](int oz, int oy, int ox) {
      const i64 from = cell + (static_cast<i64>(oz) * level.height + oy) * level.width + ox;
      return *reinterpret_cast<const float4*>(arguments.perceived + from * N::kPadded + channel);
    };
    float4 sum = *reinterpret_cast<float4*>(arguments.gradient + cell * N::kPadded + channel);
    // Away from the borders one tap of every neighbour meets this cell.
    const bool inner = x > 1 && x < level.width - 2 && y > 1 && y < level.height - 2 &&
                       (N::kDimension == 2 || (z > 1 && z < level.depth - 2));
    if (inner) {
#pragma unroll
      for (int tap = 0; tap < N::kTaps; ++tap) {
        const int oz = N::kDimension == 3 ? 1 - tap / 9 : 0;
        SingleState::fma(sum, owed(oz, 1 - tap / 3 % 3, 1 - tap % 3), weight(tap));
      }
    } else {
#pragma unroll 1
      for (int tap = 0; tap < N::kTaps; ++tap) {
        const int tx = tap % 3, ty = tap / 3 % 3, tz = tap / 9;
#pragma unroll 1
        for (int o = 0; o < 9 * (2 * kReachZ + 1); ++o) {
          const int ox = o % 3 - 1, oy = o / 3 % 3 - 1, oz = o / 9 - kReachZ;
          const bool meets = meeting_taps(x, ox, level.width) >> tx & 1 &&
                             meeting_taps(y, oy, level.height) >> ty & 1 &&
                             (kReachZ == 0 || meeting_taps(z, oz, level.depth) >> tz & 1);
          if (meets) SingleState::fma(sum, owed(oz, oy, ox), weight(tap));
        }
      }
    }
    *reinterpret_cast<float4*>(arguments.gradient + cell * N::kPadded + channel) = sum;
  }
}

}  // namespace octreenca
