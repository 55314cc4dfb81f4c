// A parallel loop that an interrupt, Ctrl-C, can end.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "no_memory.h"

namespace conv2affine {

// Minimum number of entries per thread: below this, waking it costs more than it gains. The thread sanitizer's build
// sets it lower, so that small matrices have several threads too.
#ifndef CONV2AFFINE_GRAIN_ENTRIES
#define CONV2AFFINE_GRAIN_ENTRIES 32768
#endif
inline constexpr int64_t kGrainEntries = CONV2AFFINE_GRAIN_ENTRIES;

// Called by each thread between its chunks of work; what it throws ends the loop. The operators know nothing of Python:
// bindings.cpp sets it.
inline void (*check_interrupt)() = nullptr;

// Like at::parallel_for, but polls for signals between chunks of about 10 ms; `entries` bounds the work per index.
// Threads take chunks dynamically, so that none waits long for another, however busy the machine.
template <typename F>
void interruptible_for(int64_t begin, int64_t end, int64_t entries, const F& f) {
  if (begin == end) return;
  const auto divide = [](int64_t a, int64_t b) { return (a - 1) / std::max<int64_t>(1, b) + 1; };  // rounds up
  const int64_t size = end - begin;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), divide(size, kGrainEntries / entries));
  const int64_t rounds = divide(divide(size, 128 * kGrainEntries / entries), threads);
  const int64_t chunk = divide(size, rounds * threads), chunks = divide(size, chunk);
  std::atomic<int64_t> next = 0;
  const auto work = [&](int64_t, int64_t) {
    try {
      for (int64_t number; (number = next++) < chunks;) {
        const int64_t first = begin + number * chunk;
        f(first, first + std::min(chunk, end - first));
        if (next < chunks && check_interrupt) check_interrupt();
      }
    } catch (...) {
      next = chunks;  // stops the other threads
      throw;
    }
  };
  with_no_memory([&] { at::parallel_for(0, threads, 1, work); });
}

}  // namespace conv2affine
