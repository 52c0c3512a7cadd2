// The device code as C++ for the host: a block's threads are fibers that run one after the other,
// each until it meets a barrier or hands something to its warp. What cuda/primitives.cuh asks of
// the hardware has a plain twin here.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "half.hpp"

#define __device__
#define __host__
#define __forceinline__ inline

struct alignas(8) uint2 {
  std::uint32_t x, y;
};
struct alignas(16) uint4 {
  std::uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct Dimensions {
  unsigned x;
};

namespace shim {

constexpr std::size_t kStackBytes = 128 * 1024;

// A warp's lanes put words here; the last to come computes, then all go on.
struct Warp {
  std::uint32_t in[32][12], out[32][4];
  int arrived = 0, left = 0;
  bool ready = false;
};

struct Fiber {
  ucontext_t context;
  jmp_buf at;
  bool begun = false, ended = false;
  std::vector<std::pair<void*, const void*>> copies;  // started and not yet done
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  jmp_buf scheduler;
  std::function<void()> work;
  unsigned current = 0, threads = 0, block = 0, blocks = 0;
  unsigned waiting = 0;  // at the block's barrier
  unsigned generation = 0;
  bool progress = false;
};
inline Machine machine;

// SHIM_ORDER=reverse runs the threads from the last to the first: what lacks a barrier differs.
inline bool reversed() {
  static const char* order = std::getenv("SHIM_ORDER");
  return order != nullptr && std::strcmp(order, "reverse") == 0;
}

inline void yield() {
  if (_setjmp(machine.fibers[machine.current].at) == 0) _longjmp(machine.scheduler, 1);
}

inline void run_fiber() {
  machine.work();
  machine.fibers[machine.current].ended = true;
  _longjmp(machine.scheduler, 1);
}

inline void resume(unsigned number) {
  machine.current = number;
  Fiber& fiber = machine.fibers[number];
  if (_setjmp(machine.scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.at, 1);
  fiber.begun = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_fiber, 0);
  setcontext(&fiber.context);
}

inline void run_block(unsigned block) {
  machine.block = block;
  machine.waiting = 0;
  for (Fiber& fiber : machine.fibers) {
    fiber.begun = fiber.ended = false;
    fiber.copies.clear();
  }
  for (Warp& warp : machine.warps) warp.arrived = warp.left = 0, warp.ready = false;
  // What a block finds in shared memory is left over from another.
  std::memset(machine.shared.data(), 0xFF, machine.shared.size());
  for (;;) {
    bool all_ended = true;
    machine.progress = false;
    for (unsigned i = 0; i < machine.threads; ++i) {
      const unsigned number = reversed() ? machine.threads - 1 - i : i;
      if (machine.fibers[number].ended) continue;
      all_ended = false;
      resume(number);
      if (machine.fibers[number].ended) machine.progress = true;
    }
    if (all_ended) return;
    if (!machine.progress) {
      std::fprintf(stderr, "threads wait for one another for ever\n");
      std::abort();
    }
  }
}

inline void launch(unsigned blocks, unsigned threads, unsigned shared,
                   const std::function<void()>& work) {
  machine.threads = threads;
  machine.blocks = blocks;
  machine.work = work;
  if (machine.fibers.size() < threads) machine.fibers = std::vector<Fiber>(threads);
  machine.warps = std::vector<Warp>(threads / 32);
  machine.shared.assign(shared + 16, 0);
  for (unsigned block = 0; block < blocks; ++block) run_block(block);
}

// Each lane gives `count` words; `compute` gets the warp when all have come.
template <class Compute>
inline const std::uint32_t* together(const std::uint32_t* words, int count,
                                     const Compute& compute) {
  Warp& warp = machine.warps[machine.current / 32];
  const unsigned lane = machine.current % 32;
  while (warp.ready) yield();  // some are still reading what came before
  std::memcpy(warp.in[lane], words, 4 * static_cast<std::size_t>(count));
  machine.progress = true;
  if (++warp.arrived == 32) {
    compute(warp);
    warp.ready = true;
    warp.left = 32;
    warp.arrived = 0;
  }
  while (!warp.ready) yield();
  machine.progress = true;
  static thread_local std::uint32_t result[4];
  std::memcpy(result, warp.out[lane], sizeof result);
  if (--warp.left == 0) warp.ready = false;
  return result;
}

inline float as_float(std::uint32_t word) {
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}
inline std::uint32_t as_word(float value) {
  std::uint32_t word;
  std::memcpy(&word, &value, 4);
  return word;
}

}  // namespace shim

#define threadIdx (Dimensions{shim::machine.current})
#define blockIdx (Dimensions{shim::machine.block})
#define blockDim (Dimensions{shim::machine.threads})
#define gridDim (Dimensions{shim::machine.blocks})

#define OCTREENCA_KERNEL(name, threads, resident, Args, ...)                             \
  extern "C" void name(unsigned blocks, unsigned shared, const void* arguments) {        \
    const Args given = *static_cast<const Args*>(arguments);                             \
    shim::launch(blocks, threads, shared, [&] { __VA_ARGS__(given); });                  \
  }

namespace octreenca {

inline unsigned char* shared_memory() {
  auto address = reinterpret_cast<std::uintptr_t>(shim::machine.shared.data());
  return reinterpret_cast<unsigned char*>((address + 15) / 16 * 16);
}

inline void block_barrier() {
  shim::Machine& machine = shim::machine;
  const unsigned generation = machine.generation;
  machine.progress = true;
  if (++machine.waiting == machine.threads) {
    machine.waiting = 0;
    ++machine.generation;
  }
  while (machine.generation == generation) shim::yield();
  machine.progress = true;
}

inline void warp_barrier() {
  const std::uint32_t nothing = 0;
  shim::together(&nothing, 1, [](shim::Warp&) {});
}
inline u32 ballot(bool value) {
  const u32 word = value;
  return *shim::together(&word, 1, [](shim::Warp& warp) {
    u32 bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= (warp.in[lane][0] & 1u) << lane;
    for (auto& out : warp.out) out[0] = bits;
  });
}
inline u32 word_from_lane(u32 value, u32 lane) {
  const u32 words[2] = {value, lane};
  return *shim::together(words, 2, [](shim::Warp& warp) {
    for (int i = 0; i < 32; ++i) warp.out[i][0] = warp.in[warp.in[i][1] % 32][0];
  });
}
inline float from_lane(float value, u32 lane) {
  return shim::as_float(word_from_lane(shim::as_word(value), lane));
}
inline int from_lane(int value, u32 lane) {
  return static_cast<int>(word_from_lane(static_cast<u32>(value), lane));
}
inline int count_bits(u32 word) { return __builtin_popcount(word); }
inline void add_one(u64* counter) { ++*counter; }

// As late as is allowed: before `copies_done` nothing has arrived. From the last thread to the
// first, as early: a buffer that is still in use is seen to be written.
inline void copy_16(void* shared, const void* global) {
  if (shim::reversed()) {
    std::memcpy(shared, global, 16);
  } else {
    shim::machine.fibers[shim::machine.current].copies.emplace_back(shared, global);
  }
}
inline void copies_done() {
  auto& copies = shim::machine.fibers[shim::machine.current].copies;
  for (const auto& [to, from] : copies) std::memcpy(to, from, 16);
  copies.clear();
}

inline float low_half(u32 word) { return half_to_float(static_cast<u16>(word)); }
inline float high_half(u32 word) { return half_to_float(static_cast<u16>(word >> 16)); }
inline u32 halves(float low, float high) {
  return float_to_half(low) | static_cast<u32>(float_to_half(high)) << 16;
}
inline float relu(float value) { return value < 0.0f ? 0.0f : value; }
inline u32 halves_of_relu(float low, float high) { return halves(relu(low), relu(high)); }
inline u32 halves_fma(u32 a, u32 b, u32 c) {
  return halves(std::fma(low_half(a), low_half(b), low_half(c)),
                std::fma(high_half(a), high_half(b), high_half(c)));
}

// The layouts of A (16 x K), B (K x 8) and of the sums (16 x 8) in a warp are those of the PTX
// manual, "Matrix fragments for mma.m16n8k16" and "mma.m16n8k8".
template <int K, class A, class B>
inline void mma(float* sum, const u32* a, u32 b0, u32 b1, const A& a_at, const B& b_at) {
  u32 words[10] = {a[0], a[1], a[2], a[3], b0, b1};
  for (int i = 0; i < 4; ++i) words[6 + i] = shim::as_word(sum[i]);
  const u32* result = shim::together(words, 10, [&](shim::Warp& warp) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float total = shim::as_float(warp.in[lane][6 + i]);
        for (int k = 0; k < K; ++k) total += a_at(warp, row, k) * b_at(warp, k, column);
        warp.out[lane][i] = shim::as_word(total);
      }
    }
  });
  for (int i = 0; i < 4; ++i) sum[i] = shim::as_float(result[i]);
}

inline void mma_f16(float* sum, const u32* a, u32 b0, u32 b1) {
  const auto half_of = [](u32 word, int k) { return k % 2 ? high_half(word) : low_half(word); };
  mma<16>(
      sum, a, b0, b1,
      [&](shim::Warp& warp, int row, int k) {
        return half_of(warp.in[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k);
      },
      [&](shim::Warp& warp, int k, int column) {
        return half_of(warp.in[column * 4 + k % 8 / 2][4 + k / 8], k);
      });
}

inline void mma_f16_short(float* sum, const u32* a, u32 b) {
  const auto half_of = [](u32 word, int k) { return k % 2 ? high_half(word) : low_half(word); };
  const u32 words[4] = {a[0], a[1], 0, 0};
  mma<8>(
      sum, words, b, 0,
      [&](shim::Warp& warp, int row, int k) {
        return half_of(warp.in[row % 8 * 4 + k / 2][row / 8], k);
      },
      [&](shim::Warp& warp, int k, int column) {
        return half_of(warp.in[column * 4 + k / 2][4], k);
      });
}

// To nearest, ties away from zero, 10 bits of fraction.
inline u32 to_tf32(float value) {
  const u32 word = shim::as_word(value);
  if ((word & 0x7F800000u) == 0x7F800000u) return word;
  return (word + 0x1000u) & 0xFFFFE000u;
}

inline void mma_tf32(float* sum, const u32* a, u32 b0, u32 b1) {
  const auto number = [](u32 word) { return shim::as_float(word & 0xFFFFE000u); };
  mma<8>(
      sum, a, b0, b1,
      [&](shim::Warp& warp, int row, int k) {
        return number(warp.in[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2]);
      },
      [&](shim::Warp& warp, int k, int column) {
        return number(warp.in[column * 4 + k % 4][4 + k / 4]);
      });
}

}  // namespace octreenca
