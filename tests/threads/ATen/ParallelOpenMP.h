// Parallel loops with std::thread, in place of PyTorch's header. ThreadSanitizer does not see how GCC's OpenMP
// synchronises, and would report races that are none.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

#define INTRA_OP_PARALLEL

namespace at::internal {

template <typename F>
void invoke_parallel(int64_t begin, int64_t end, int64_t grain_size, const F& f) {
  const int64_t threads = std::min<int64_t>(get_num_threads(), divup(end - begin, std::max<int64_t>(1, grain_size)));
  const int64_t chunk = divup(end - begin, threads);
  std::vector<std::exception_ptr> errors(threads);
  const auto work = [&](int64_t thread) {
    const int64_t first = begin + thread * chunk;
    if (first >= end) return;
    try {
      const ThreadIdGuard guard(static_cast<int>(thread));
      f(first, std::min(end, first + chunk));
    } catch (...) {
      errors[thread] = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (int64_t thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& other : others) other.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace at::internal
