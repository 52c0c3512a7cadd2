// Threads that live as long as one call. Starting one takes some 20 us, a call milliseconds;
// nothing is left over that a forked worker could inherit half-alive, that spins while PyTorch's
// own threads work, or that must be stopped at exit.
//
// OCTREENCA_ONE_THREAD: for WebAssembly, whose pages opened from a file may not share memory.
#pragma once

#include <cstdint>

#if defined(OCTREENCA_ONE_THREAD)

namespace octreenca {

class Backoff {
 public:
  void wait() { __builtin_trap(); }  // there is nobody to wait for
};

class Team {
 public:
  int size() const { return 1; }
  void barrier() {}

  template <class Work>
  static void run(int, const Work& work) {
    Team team;
    work(0, team);
  }
};

template <class Work>
void for_each(int, std::int64_t items, const Work& work) {
  for (std::int64_t item = 0; item < items; ++item) work(item);
}

}  // namespace octreenca

#else

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace octreenca {

// Waits for another thread: spins for some microseconds, then yields, since on a busy machine the
// thread that is waited for may not be running.
class Backoff {
 public:
  void wait() {
    if (++rounds_ < 512) {
#if defined(__x86_64__) || defined(_M_X64)
      _mm_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    } else {
      std::this_thread::yield();
    }
  }

 private:
  int rounds_ = 0;
};

// The threads of one call, and their barrier.
class Team {
 public:
  int size() const { return size_; }

  // Returns when all threads of the team have arrived.
  void barrier() {
    const unsigned generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
      return;
    }
    Backoff backoff;
    while (generation_.load(std::memory_order_acquire) == generation) backoff.wait();
  }

  // Calls work(index, team) on `threads` threads, the caller being the first. Where the system
  // gives fewer, the team is smaller. What a thread throws is thrown here once all are done; work
  // that uses the barrier must not throw.
  template <class Work>
  static void run(int threads, const Work& work) {
    Team team;
    std::mutex mutex;
    std::condition_variable begun;
    std::vector<std::thread> others;
    bool go = false;
    std::exception_ptr thrown;
    const auto guarded = [&](int index) {
      try {
        work(index, team);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex);
        if (!thrown) thrown = std::current_exception();
      }
    };
    if (threads > 1) others.reserve(static_cast<std::size_t>(threads) - 1);
    for (int index = 1; index < threads; ++index) {
      try {
        others.emplace_back([&, index] {
          {
            std::unique_lock<std::mutex> lock(mutex);
            begun.wait(lock, [&] { return go; });
          }
          guarded(index);
        });
      } catch (const std::system_error&) {
        break;
      }
    }
    {
      std::lock_guard<std::mutex> lock(mutex);
      team.size_ = static_cast<int>(others.size()) + 1;
      go = true;
    }
    begun.notify_all();
    guarded(0);
    for (auto& other : others) other.join();
    if (thrown) std::rethrow_exception(thrown);
  }

 private:
  int size_ = 1;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> generation_{0};
};

// work(item) for all items, each on whichever thread is free.
template <class Work>
void for_each(int threads, std::int64_t items, const Work& work) {
  if (threads > items) threads = static_cast<int>(items);
  std::atomic<std::int64_t> next{0};
  Team::run(threads, [&](int, Team&) {
    for (std::int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
      work(item);
    }
  });
}

}  // namespace octreenca

#endif
