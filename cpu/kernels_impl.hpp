// The kernels, written once over the vector's width. Included by kernels_*.cpp, each of which
// sets kVectorBytes and kBlockVectors first and is compiled with its own flags.
//
// No template of the standard library is used here: its functions would be shared with the rest
// of the program, in whichever instruction set the linker took first.
#pragma once

#include "fire.hpp"
#include "hand_down.hpp"
#include "kernels.hpp"
#include "micro_kernel.hpp"
#include "perceive.hpp"
#include "vector.hpp"

namespace octreenca {
namespace {

// ------------------------------------------------------------------ which cells

#if OCTREENCA_AVX512

// fire_row for 16 cells from x on: a bit each.
OCTREENCA_INLINE __mmask16 fired_bits(FireRow row, std::uint32_t x, std::int64_t cells,
                                      std::uint64_t threshold, __m512i lanes) {
  const auto first = static_cast<int>(row.base + x * row.stride);
  const auto mask = static_cast<__mmask16>(cells < 16 ? (1u << cells) - 1u : 0xFFFFu);
  if (threshold >= kCertain) return mask;
  __m512i value = _mm512_add_epi32(_mm512_set1_epi32(first), lanes);
  value = _mm512_xor_si512(value, _mm512_srli_epi32(value, 16));
  value = _mm512_mullo_epi32(value, _mm512_set1_epi32(0x7FEB352D));
  value = _mm512_xor_si512(value, _mm512_srli_epi32(value, 15));
  value = _mm512_mullo_epi32(value, _mm512_set1_epi32(static_cast<int>(0x846CA68Bu)));
  value = _mm512_xor_si512(value, _mm512_srli_epi32(value, 16));
  return _mm512_mask_cmplt_epu32_mask(mask, value, _mm512_set1_epi32(static_cast<int>(threshold)));
}

// Calls take(row, first x, bits) for every 16 cells of a slice. Rows are short: a loop over cells
// that ends in single ones would do most of its work there.
template <class Take, class EndRow>
OCTREENCA_INLINE void over_fired(const Draw& draw, std::int64_t height, std::int64_t width,
                                 const Take& take, const EndRow& end_row) {
  const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (std::int64_t row = 0; row < height; ++row) {
    const FireRow at = fire_row_of(draw.key, draw.z, draw.y + static_cast<std::uint32_t>(row));
    const __m512i lanes = _mm512_mullo_epi32(iota, _mm512_set1_epi32(static_cast<int>(at.stride)));
    for (std::int64_t x = 0; x < width; x += 16) {
      take(x, fired_bits(at, draw.x + static_cast<std::uint32_t>(x), width - x, draw.threshold,
                         lanes));
    }
    end_row(row);
  }
}

std::int64_t count(const Draw& draw, std::int64_t height, std::int64_t width, std::uint8_t*) {
  std::int64_t total = 0;
  over_fired(
      draw, height, width,
      [&](std::int64_t, __mmask16 bits) { total += __builtin_popcount(bits); },
      [](std::int64_t) {});
  return total;
}

void draw(const Draw& draw, std::int64_t height, std::int64_t width, std::uint8_t*, Fired& fired) {
  const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  std::int64_t count = 0;
  over_fired(
      draw, height, width,
      [&](std::int64_t x, __mmask16 bits) {
        const __m512i cells = _mm512_add_epi32(iota, _mm512_set1_epi32(static_cast<int>(x)));
        // Compressed in a register: the form that writes to memory is slow on some processors.
        _mm512_storeu_si512(fired.x + count, _mm512_maskz_compress_epi32(bits, cells));
        count += __builtin_popcount(bits);
      },
      [&](std::int64_t row) { fired.row_end[row] = count; });
  fired.count = count;
}

#else

std::int64_t count(const Draw& draw, std::int64_t height, std::int64_t width,
                   std::uint8_t* flags) {
  std::int64_t total = 0;
  for (std::int64_t row = 0; row < height; ++row) {
    const auto y = draw.y + static_cast<std::uint32_t>(row);
    fire_row(flags, width, draw.key, draw.z, y, draw.x, draw.threshold);
    for (std::int64_t x = 0; x < width; ++x) total += flags[x];
  }
  return total;
}

void draw(const Draw& draw, std::int64_t height, std::int64_t width, std::uint8_t* flags,
          Fired& fired) {
  std::int64_t count = 0;
  for (std::int64_t row = 0; row < height; ++row) {
    const auto y = draw.y + static_cast<std::uint32_t>(row);
    fire_row(flags, width, draw.key, draw.z, y, draw.x, draw.threshold);
    for (std::int64_t x = 0; x < width; ++x) {  // no branch to mispredict on every other cell
      fired.x[count] = static_cast<std::uint32_t>(x);
      count += flags[x];
    }
    fired.row_end[row] = count;
  }
  fired.count = count;
}

#endif

OCTREENCA_INLINE int input_stride(const Sizes& sizes) {
  return sizes.padded_doubled + sizes.padded_channels;
}

// C = 16 and H = 64 are what the paper uses and what the planner chooses for most data sets. With
// these sizes known to the compiler the micro-kernel reaches 94 % of the processor's peak, without
// them 87 %.
template <bool kPaper>
OCTREENCA_INLINE Sizes sizes_of(const Sizes& sizes) {
  if constexpr (kPaper) return {sizes.dimension, 16, sizes.inputs, 64, 16, 64, 32};
  return sizes;
}

inline bool is_paper(const Sizes& sizes) {
  return sizes.channels == 16 && sizes.hidden == 64 && sizes.padded_channels == 16 &&
         sizes.padded_hidden == 64 && sizes.padded_doubled == 32;
}

// Calls work(dimension, is_paper) with both as types.
template <class Work>
OCTREENCA_INLINE void specialised(const Sizes& sizes, const Work& work) {
  const bool paper = is_paper(sizes);
  if (sizes.dimension == 2) {
    paper ? work(Count<2>{}, Count<1>{}) : work(Count<2>{}, Count<0>{});
  } else {
    paper ? work(Count<3>{}, Count<1>{}) : work(Count<3>{}, Count<0>{});
  }
}

// ------------------------------------------------------------------ forward

// `inputs` in bfloat16, two a word; stride in words and in numbers alike.
OCTREENCA_INLINE void to_bf16(const float* inputs, int rows, int stride, int columns,
                              std::uint32_t* words) {
  for (int i = 0; i < rows; ++i) {
    auto* to = reinterpret_cast<std::uint16_t*>(words + i * stride);
    for (int c = 0; c < columns; c += kLanes<float>) {
      store_bf16(to + c, load(inputs + i * stride + c));
    }
  }
}

template <int kDimension, bool kPaper, bool kBf16, class T, class S>
void forward_in(const Slice<S>& slice, const Weights<T>& weights, Scratch<T>& scratch,
                Pending<T>& pending) {
  const Sizes sizes = sizes_of<kPaper>(weights.sizes);
  const int stride = input_stride(sizes), padded = sizes.padded_channels;
  const int hidden = sizes.padded_hidden;
  Walk walk(scratch.fired, slice.height, slice.width, padded);
  Chunk chunk;
  pending.count = 0;
  while (walk.next(chunk)) {
    perceive<kDimension>(slice, chunk, weights, sizes, scratch.inputs, stride);
    const int rows = fill_group(chunk.count, scratch.inputs, stride);
    T* updates = pending.updates + pending.count * padded;
    for (int row = 0; row < rows; row += kGroup) {
      const T* inputs = scratch.inputs + row * stride;
      if constexpr (kBf16) {
        auto* words = reinterpret_cast<std::uint32_t*>(scratch.grad_inputs);
        auto* activations = reinterpret_cast<std::uint32_t*>(scratch.hidden);
        to_bf16(inputs, kGroup, stride, sizes.padded_doubled, words);
        linear<Epilogue::kReluBf16>(kGroup, words, stride, sizes.channels, weights.hidden_pairs,
                                    hidden, weights.hidden_bias,
                                    reinterpret_cast<std::uint16_t*>(activations), hidden);
        linear<Epilogue::kStore>(kGroup, activations, hidden / 2, (sizes.hidden + 1) / 2,
                                 weights.update_pairs, padded, nullptr, updates + row * padded,
                                 padded);
      } else {
        linear<Epilogue::kRelu>(kGroup, inputs, stride, 2 * sizes.channels, weights.hidden, hidden,
                                weights.hidden_bias, scratch.hidden, hidden);
        linear<Epilogue::kStore>(kGroup, scratch.hidden, hidden, sizes.hidden, weights.update,
                                 padded, nullptr, updates + row * padded, padded);
      }
    }
    for (int i = 0; i < chunk.count; ++i) pending.cells[pending.count + i] = chunk.cell[i];
    pending.count += chunk.count;
  }
}

template <bool kBf16, class T, class S>
void forward(const Slice<S>& slice, const Weights<T>& weights, Scratch<T>& scratch,
             Pending<T>& pending) {
  specialised(weights.sizes, [&](auto dimension, auto paper) {
    forward_in<decltype(dimension)::value, decltype(paper)::value, kBf16>(slice, weights, scratch,
                                                                          pending);
  });
}

// ------------------------------------------------------------------ state and log

template <class T>
struct Quad {
  typedef T type __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <class T>
struct Quad<const T> {
  typedef const typename Quad<T>::type type;
};

// Copies `count` elements to b, swaps them if kSwap. Four at a time, the last four overlapping:
// neither reads nor writes anything beyond.
template <bool kSwap, class A, class T>
OCTREENCA_INLINE void exchange(A* a, T* b, int count) {
  using V = typename Quad<T>::type;
  using U = typename Quad<A>::type;
  if (count < 4) {
    for (int c = 0; c < count; ++c) {
      const T old = a[c];
      if constexpr (kSwap) a[c] = b[c];
      b[c] = old;
    }
    return;
  }
  const int last = count - 4;
  const V last_a = *reinterpret_cast<U*>(a + last);
  [[maybe_unused]] const V last_b = *reinterpret_cast<V*>(b + last);
  for (int c = 0; c < last; c += 4) {
    const V old = *reinterpret_cast<U*>(a + c);
    if constexpr (kSwap) *reinterpret_cast<V*>(a + c) = *reinterpret_cast<V*>(b + c);
    *reinterpret_cast<V*>(b + c) = old;
  }
  if constexpr (kSwap) *reinterpret_cast<V*>(a + last) = last_b;
  *reinterpret_cast<V*>(b + last) = last_a;
}

template <class T, class S>
void commit(const Sizes& sizes, const Pending<T>& pending, S* slice, T* log) {
  constexpr int L = kLanes<T>;
  const int padded = sizes.padded_channels, changing = sizes.outputs();
  for (std::int64_t i = 0; i < pending.count; ++i) {
    S* cell = slice + static_cast<std::int64_t>(pending.cells[i]) * padded;
    if constexpr (sizeof(S) == sizeof(T)) {
      if (log) {
        exchange<false>(reinterpret_cast<const T*>(cell) + sizes.inputs, log + i * changing,
                        changing);
      }
    }
    const T* update = pending.updates + i * padded;
    for (int c = 0; c < padded; c += L) store(cell + c, load(cell + c) + load(update + c));
  }
}

// Whether the state holds NaN or infinity: these times 0 are NaN, all other numbers 0. Four sums
// hide the latency of an addition, so that this costs what loading the state costs.
template <class T, class S>
OCTREENCA_INLINE bool any_non_finite(const S* state, std::int64_t count) {
  constexpr int L = kLanes<T>;
  const Vector<T> zero{};
  Vector<T> sums[4] = {};
  std::int64_t i = 0;
  for (; i + 4 * L <= count; i += 4 * L) {
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) sums[n] += load(state + i + n * L) * zero;
  }
  for (; i < count; i += L) sums[0] += load(state + i) * zero;
  const Vector<T> sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  for (int lane = 0; lane < L; ++lane) {
    if (sum[lane] != T(0)) return true;
  }
  return false;
}

template <class T, class S>
std::int64_t non_finite(const Sizes& sizes, std::int64_t cells, const S* state) {
  const std::int64_t padded = sizes.padded_channels;
  if (!any_non_finite<T>(state, cells * padded)) return 0;
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < cells; ++i) count += any_non_finite<T>(state + i * padded, padded);
  return count;
}

// Calls work(changing channels, log) for every fired cell.
template <class T, class L, class Work>
OCTREENCA_INLINE void over_log(const Sizes& sizes, const Fired& fired, std::int64_t height,
                               std::int64_t width, T* slice, L* log, const Work& work) {
  const int padded = sizes.padded_channels, changing = sizes.outputs();
  std::int64_t i = 0;
  for (std::int64_t row = 0; row < height; ++row) {
    T* begin = slice + row * width * padded + sizes.inputs;
    for (; i < fired.row_end[row]; ++i) {
      work(begin + static_cast<std::int64_t>(fired.x[i]) * padded, log + i * changing);
    }
  }
}

template <class T>
void undo(const Sizes& sizes, const Fired& fired, std::int64_t height, std::int64_t width,
          T* slice, const T* log) {
  over_log(sizes, fired, height, width, slice, log,
           [&](T* cell, const T* old) { exchange<false>(old, cell, sizes.outputs()); });
}

template <class T>
void swap_log(const Sizes& sizes, const Fired& fired, std::int64_t height, std::int64_t width,
              T* slice, T* log) {
  over_log(sizes, fired, height, width, slice, log,
           [&](T* cell, T* old) { exchange<true>(cell, old, sizes.outputs()); });
}

template <class T>
void gather(const Sizes& sizes, const Fired& fired, std::int64_t height, std::int64_t width,
            const T* gradient, T* gathered) {
  const int padded = sizes.padded_channels;
  std::int64_t i = 0;
  for (std::int64_t row = 0; row < height; ++row) {
    const T* begin = gradient + row * width * padded;
    for (; i < fired.row_end[row]; ++i) {
      const T* cell = begin + static_cast<std::int64_t>(fired.x[i]) * padded;
      for (int c = 0; c < padded; c += kLanes<T>) store(gathered + i * padded + c, load(cell + c));
    }
  }
}

// ------------------------------------------------------------------ backward

template <int kDimension, bool kPaper, class T>
void backward_in(const Slice<T>& slice, const Weights<T>& weights, Scratch<T>& scratch,
                 const Fired& fired, const T* gathered, T* const gradient[3],
                 Gradients<T>& gradients) {
  constexpr int L = kLanes<T>;
  const Sizes sizes = sizes_of<kPaper>(weights.sizes);
  const int stride = input_stride(sizes), padded = sizes.padded_channels;
  const int hidden = sizes.padded_hidden, channels = sizes.channels;
  Walk walk(fired, slice.height, slice.width, padded);
  Chunk chunk;
  while (walk.next(chunk)) {
    perceive<kDimension>(slice, chunk, weights, sizes, scratch.inputs, stride);
    const int rows = fill_group(chunk.count, scratch.inputs, stride);
    for (int i = 0; i < chunk.count * padded; ++i) scratch.grad_out[i] = gathered[i];
    fill_group(chunk.count, scratch.grad_out, padded);
    gathered += static_cast<std::int64_t>(chunk.count) * padded;
    const T* grad_out = scratch.grad_out + sizes.inputs;
    for (int row = 0; row < rows; row += kGroup) {
      T* activations = scratch.hidden + row * hidden;
      T* grad_hidden = scratch.grad_hidden + row * hidden;
      linear<Epilogue::kRelu>(kGroup, scratch.inputs + row * stride, stride, 2 * channels,
                              weights.hidden, hidden, weights.hidden_bias, activations, hidden);
      for (int i = 0; i < kGroup * hidden; i += L) store(grad_hidden + i, load(activations + i));
      linear<Epilogue::kMask>(kGroup, grad_out + row * padded, padded, sizes.outputs(),
                                 weights.update_transposed, hidden, nullptr, grad_hidden, hidden);
      linear<Epilogue::kStore>(kGroup, grad_hidden, hidden, sizes.hidden,
                                  weights.hidden_transposed, sizes.padded_doubled, nullptr,
                                  scratch.grad_inputs + row * stride, stride);
    }
    outer(sizes.outputs(), chunk.count, grad_out, padded, scratch.hidden, hidden,
          gradients.update_transposed, hidden);
    outer(2 * channels, chunk.count, scratch.inputs, stride, scratch.grad_hidden, hidden,
          gradients.hidden, hidden);
    for (int j = 0; j < hidden; j += L) {
      Vector<T> sum = load(gradients.hidden_bias + j);
      for (int i = 0; i < chunk.count; ++i) sum += load(scratch.grad_hidden + i * hidden + j);
      store(gradients.hidden_bias + j, sum);
    }
    // Gradient of the cell's own state; its padding would be the gradient of what it perceived.
    for (int i = 0; i < chunk.count; ++i) {
      T* cell = gradient[1] + chunk.here[i] + chunk.middle[i];
      const T* grad = scratch.grad_inputs + i * stride;
      int c = 0;
      for (; c + L <= channels; c += L) store(cell + c, load(cell + c) + load(grad + c));
      for (; c < channels; ++c) cell[c] += grad[c];
    }
    // Whole vectors of the perceived part's gradient: what lies beyond meets zeros of the kernel.
    perceive_backward<kDimension>(slice, chunk, weights, sizes, scratch.grad_inputs + channels,
                                  stride, gradient, gradients.perceive);
  }
}

template <class T>
void backward(const Slice<T>& slice, const Weights<T>& weights, Scratch<T>& scratch,
              const Fired& fired, const T* gathered, T* const gradient[3],
              Gradients<T>& gradients) {
  specialised(weights.sizes, [&](auto dimension, auto paper) {
    backward_in<decltype(dimension)::value, decltype(paper)::value>(
        slice, weights, scratch, fired, gathered, gradient, gradients);
  });
}

// ------------------------------------------------------------------ the peak

template <class T>
double burn(std::int64_t iterations, T* sink) {
  constexpr int N = 12;  // enough sums to hide the latency, few enough for 16 registers
  Vector<T> sum[N];
#pragma GCC unroll 12
  for (int n = 0; n < N; ++n) sum[n] = broadcast<T>(T(1 + 1e-3 * n));
  const Vector<T> factor = broadcast<T>(sink[0]), term = broadcast<T>(sink[1]);
  for (std::int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int n = 0; n < N; ++n) {
      sum[n] = sum[n] * factor + term;
#if defined(OCTREENCA_PORTABLE_VECTORS)
      asm volatile("" : "+m"(sum[n]));  // wider than any register
#elif defined(__aarch64__)
      asm volatile("" : "+w"(sum[n]));
#elif defined(__x86_64__)
      asm volatile("" : "+x"(sum[n]));
#endif
    }
  }
  T total = 0;
#pragma GCC unroll 12
  for (int n = 0; n < N; ++n) total += sum[n][0];
  sink[0] += T(1e-30) * total;
  return 2.0 * N * kLanes<T> * static_cast<double>(iterations);
}

template <class T, class S = T>
constexpr Operations<T, S> prediction_operations() {
  Operations<T, S> set{};
  set.lanes = kLanes<T>;
  set.count = count;
  set.draw = draw;
  set.forward = forward<false, T, S>;
  set.commit = commit<T, S>;
  set.non_finite = non_finite<T, S>;
  set.hand_down = hand_down<T, S>;
  return set;
}

template <class T, class S>
constexpr Operations<T, S> operations() {
  Operations<T, S> set = prediction_operations<T, S>();
  if constexpr (sizeof(T) == sizeof(float)) set.forward_bf16 = forward<true, T, S>;
  if constexpr (sizeof(T) == sizeof(S)) {
    set.undo = undo<T>;
    set.swap = swap_log<T>;
    set.gather = gather<T>;
    set.backward = backward<T>;
    set.hand_down_backward = hand_down_backward<T>;
  }
  return set;
}

}  // namespace
}  // namespace octreenca
