// In which order the slices of a level go through their steps. Both orders are in place: a slice's
// updates are committed once the slices beside it no longer need the old values. The result does
// not depend on the order or on the number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "threads.hpp"

namespace octreenca {

// One step after the other; every thread sweeps through a band of slices.
//   compute(thread, step, slice, slot)   slot 0, 1 or 2 of the thread's pending updates
//   commit(thread, step, slice, slot)
template <class Compute, class Commit>
void sweep(int threads, std::int64_t slices, int steps, const Compute& compute,
           const Commit& commit) {
  threads = static_cast<int>(std::min<std::int64_t>(threads, slices));
  Team::run(threads, [&](int index, Team& team) {
    const std::int64_t first = slices * index / team.size();
    const std::int64_t end = slices * (index + 1) / team.size();
    for (int step = 0; step < steps; ++step) {
      // The band before needs the first slice's old values, the band behind the last one's: both
      // wait until all threads have come this far.
      int current = 1, previous = 2;
      compute(index, step, first, 0);
      for (std::int64_t slice = first + 1; slice < end; ++slice) {
        compute(index, step, slice, current);
        if (slice > first + 1) commit(index, step, slice - 1, previous);
        std::swap(current, previous);
      }
      team.barrier();
      commit(index, step, first, 0);
      if (end - first > 1) commit(index, step, end - 1, previous);
      team.barrier();
    }
  });
}

// How far every step of a wavefront is.
struct Progress {
  struct alignas(64) Stage {
    std::atomic<std::int64_t> ready{0};  // slices that have all the steps before
    std::atomic<bool> busy{false};
    std::int64_t next = 0;  // the slice this stage does next; only touched by who is busy with it
  };

  // Stage 0 feeds, stage t + 1 does step t; ready of stage t + 1 counts what stage t finished.
  Progress(std::int64_t slices_, int steps_, std::int64_t ring_, std::int64_t batch_)
      : slices(slices_), steps(steps_), ring(ring_), batch(batch_),
        stages(new Stage[static_cast<std::size_t>(steps_) + 2]) {}

  std::int64_t fed() const { return stages[1].ready.load(std::memory_order_acquire); }
  std::int64_t finished() const {
    return stages[static_cast<std::size_t>(steps) + 1].ready.load(std::memory_order_acquire);
  }

  const std::int64_t slices;
  const int steps;
  const std::int64_t ring;
  const std::int64_t batch;  // slices done before another stage is looked at
  std::unique_ptr<Stage[]> stages;
};

// One turn of a thread: a batch of slices of the last stage that can go on. False where none can.
//   may_feed(slice)  whether there is room for the slice, and what it is made from
template <class MayFeed, class Feed, class Compute, class Commit, class Drain>
bool wavefront_turn(int thread, Progress& progress, const MayFeed& may_feed, const Feed& feed,
                    const Compute& compute, const Commit& commit, const Drain& drain) {
  const std::int64_t slices = progress.slices;
  const int steps = progress.steps;
  Progress::Stage* stages = progress.stages.get();

  const auto publish = [&](int stage, std::int64_t count) {
    stages[stage + 1].ready.store(count, std::memory_order_release);
  };
  const auto can_step = [&](int stage, std::int64_t slice) {
    return slice < slices && stages[stage].ready.load(std::memory_order_acquire) >=
                               std::min(slice + 2, slices);
  };
  const auto do_feed = [&](std::int64_t slice) {
    feed(thread, slice);
    if (steps == 0) drain(thread, slice);
    publish(0, slice + 1);
  };
  const auto finish = [&](int stage, std::int64_t slice) {
    commit(thread, stage - 1, slice, static_cast<int>(slice & 1));
    if (stage == steps) drain(thread, slice);
    publish(stage, slice + 1);
  };
  const auto do_step = [&](int stage, std::int64_t slice) {
    compute(thread, stage - 1, slice, static_cast<int>(slice & 1));
    if (slice > 0) finish(stage, slice - 1);
    if (slice == slices - 1) finish(stage, slice);
  };

  // The last steps first: what they finish leaves the cache and makes room in the ring.
  for (int stage = steps; stage >= 0; --stage) {
    Progress::Stage& mine = stages[stage];
    const auto possible = [&](std::int64_t slice) {
      return stage == 0 ? slice < slices && may_feed(slice) : can_step(stage, slice);
    };
    if (mine.busy.exchange(true, std::memory_order_acquire)) continue;
    std::int64_t slice = mine.next, done = 0;
    for (; done < progress.batch && possible(slice); ++done, ++slice) {
      if (stage == 0) {
        do_feed(slice);
      } else {
        do_step(stage, slice);
      }
    }
    mine.next = slice;
    mine.busy.store(false, std::memory_order_release);
    if (done) return true;
  }
  return false;
}

// All steps at once, by wavefront temporal blocking (Wellein et al. 2009, "Efficient temporal
// blocking for stencil computations by multicore-aware wavefront parallelization", COMPSAC): step t
// trails step t - 1 by two slices, so that a state is read from the cache ten times, not from
// memory. Threads take whichever step can go on. With fewer slots than slices (a ring) the whole
// state never exists: `feed` fills a slice, and `drain` uses it when its last step is done.
//   feed(thread, slice), drain(thread, slice)
//   compute(thread, step, slice, slot), commit(thread, step, slice, slot)   slot: 2 a step
template <class Feed, class Compute, class Commit, class Drain>
void wavefront(int thread, Progress& progress, const Feed& feed, const Compute& compute,
               const Commit& commit, const Drain& drain) {
  const auto may_feed = [&](std::int64_t slice) {
    return slice < progress.finished() + progress.ring;
  };
  Backoff backoff;
  while (progress.finished() < progress.slices) {
    if (wavefront_turn(thread, progress, may_feed, feed, compute, commit, drain)) {
      backoff = Backoff();
    } else {
      backoff.wait();
    }
  }
}

}  // namespace octreenca
