// A parallel loop that an interrupt, Ctrl-C, can end.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "no_memory.h"

namespace conv2affine {

// The entries that a thread should at least have to write or read: below this, waking it costs more than it gains.
// Where races are looked for it is less, so that small matrices have several threads too.
#ifndef CONV2AFFINE_GRAIN_ENTRIES
#define CONV2AFFINE_GRAIN_ENTRIES 32768
#endif
inline constexpr int64_t kGrainEntries = CONV2AFFINE_GRAIN_ENTRIES;

// Called by each thread between its pieces of work; what it throws ends the loop. The operators know nothing of Python:
// bindings.cpp sets it.
inline void (*check_interrupt)() = nullptr;

// at::parallel_for over indices that have at most so many entries each. Each thread takes one piece after the other, so
// that none waits long for another one, however busy the machine. A piece takes 10 ms.
template <typename F>
void interruptible_for(int64_t begin, int64_t end, int64_t entries, const F& f) {
  if (begin == end) return;
  const auto divide = [](int64_t a, int64_t b) { return (a - 1) / std::max<int64_t>(1, b) + 1; };  // rounds up
  const int64_t size = end - begin;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), divide(size, kGrainEntries / entries));
  const int64_t rounds = divide(divide(size, 128 * kGrainEntries / entries), threads);
  const int64_t piece = divide(size, rounds * threads), pieces = divide(size, piece);
  std::atomic<int64_t> next = 0;
  const auto work = [&](int64_t, int64_t) {
    try {
      for (int64_t number; (number = next++) < pieces;) {
        const int64_t first = begin + number * piece;
        f(first, first + std::min(piece, end - first));
        if (next < pieces && check_interrupt) check_interrupt();
      }
    } catch (...) {
      next = pieces;  // for the other threads
      throw;
    }
  };
  with_no_memory([&] { at::parallel_for(0, threads, 1, work); });
}

}  // namespace conv2affine
