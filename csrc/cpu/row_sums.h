// Sums over single rows of a sparse matrix: from the entries of a row to its weights.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "convolution.h"
#include "cpu/wide.h"
#include "rows.h"

namespace conv2affine {

// sums[e] += entry e of each row. Most rows come from memory or a cache that is far, one behind the other.
template <typename acc_t, typename scalar_t>
[[gnu::always_inline]] inline void add_rows_inline(acc_t* __restrict sums, const scalar_t* __restrict row,
                                                   int64_t entries, int64_t rows) {
  constexpr int64_t kCacheLine = 64 / sizeof(scalar_t), kAhead = 8192 / sizeof(scalar_t);
  for (; rows > 0; --rows, row += entries) {
    int64_t e = 0;
    for (; e + kCacheLine <= entries; e += kCacheLine) {
      // Additions that wait fill what the processor looks ahead. Measured: without this, up to half as long again.
      __builtin_prefetch(row + e + kAhead);
#pragma omp simd
      for (int64_t i = e; i < e + kCacheLine; ++i) sums[i] += static_cast<acc_t>(row[i]);
    }
    for (; e < entries; ++e) sums[e] += static_cast<acc_t>(row[e]);
  }
}

template <typename acc_t, typename scalar_t>
void add_rows(acc_t* sums, const scalar_t* row, int64_t entries, int64_t rows) {
  add_rows_inline(sums, row, entries, rows);
}

CONV2AFFINE_WIDE inline void add_rows(float* sums, const float* row, int64_t entries, int64_t rows) {
  add_rows_inline(sums, row, entries, rows);
}

CONV2AFFINE_WIDE inline void add_rows(double* sums, const double* row, int64_t entries, int64_t rows) {
  add_rows_inline(sums, row, entries, rows);
}

// Note [Tap runs]
//
// Along one axis, neighbouring entries of a row mostly go to neighbouring weights, forward or, in a transposed matrix,
// backward: entry, entry + 1, ... to kernel, kernel + step, ... So each pattern is a few runs, and a row is the product
// of the runs of three axes, whatever order the columns of the row have: nothing that is as long as a row is made.

struct TapRun {
  int64_t entry, kernel, step, count;
};

// The runs of each pattern of an axis.
class AxisRuns {
 public:
  explicit AxisRuns(const AxisTaps& taps) {
    runs_.reserve(taps.patterns());  // at the least
    start_.reserve(taps.patterns() + 1);
    start_.push_back(0);
    for (int64_t pattern = 0; pattern < taps.patterns(); ++pattern) {
      int64_t entry = -1, input = -1;
      for (const Tap& tap : taps.taps(pattern)) {
        if (tap.input != input) ++entry;
        input = tap.input;
        add(entry, tap.kernel);
      }
      start_.push_back(runs_.size());
    }
  }

  std::span<const TapRun> operator[](int64_t pattern) const {
    return {runs_.data() + start_[pattern], runs_.data() + start_[pattern + 1]};
  }

  // Whether the entries go to `kernel` weights, all that there are, as they lie. A run may go to one weight: its step
  // is 0 then.
  bool is_whole(int64_t pattern, int64_t kernel) const {
    const TapRun& run = runs_[start_[pattern]];
    return run.count == kernel && run.step == 1;
  }

 private:
  void add(int64_t entry, int64_t kernel) {
    if (!runs_.empty()) {
      TapRun& run = runs_.back();  // it may belong to the pattern before, but then entry is 0 and does not follow
      const int64_t step = kernel - (run.kernel + (run.count - 1) * run.step);
      if (entry == run.entry + run.count && (run.count == 1 || step == run.step)) {
        run.step = step;
        ++run.count;
        return;
      }
    }
    runs_.push_back({entry, kernel, 1, 1});
  }

  std::vector<TapRun> runs_;
  std::vector<int64_t> start_;  // runs of pattern p: [start[p], start[p + 1])
};

// What a row is a product of, and the sizes that place it.
struct RowProduct {
  std::span<const TapRun> runs1, runs2, runs3;
  int64_t entries2, entries3, entries;  // along two axes, and in an input channel
  int64_t kernel2, kernel3, kernel;
  int64_t in_per_group;
};

// A run of the last axis in all input channels.
template <typename acc_t, typename scalar_t>
[[gnu::always_inline]] inline void add_run_inline(acc_t* __restrict weight, const scalar_t* __restrict value,
                                                  const TapRun& run, const RowProduct& p) {
  // The longer loop inside.
  if (p.in_per_group > run.count) {
    for (int64_t n = 0; n < run.count; ++n, weight += run.step, ++value) {
      for (int64_t ci = 0; ci < p.in_per_group; ++ci) {
        weight[ci * p.kernel] += static_cast<acc_t>(value[ci * p.entries]);
      }
    }
    return;
  }
  for (int64_t ci = 0; ci < p.in_per_group; ++ci, weight += p.kernel, value += p.entries) {
    if (run.step == 1) {
#pragma omp simd
      for (int64_t n = 0; n < run.count; ++n) weight[n] += static_cast<acc_t>(value[n]);
    } else if (run.step == -1) {
#pragma omp simd
      for (int64_t n = 0; n < run.count; ++n) weight[-n] += static_cast<acc_t>(value[n]);
    } else {
      for (int64_t n = 0; n < run.count; ++n) weight[n * run.step] += static_cast<acc_t>(value[n]);
    }
  }
}

template <typename acc_t, typename scalar_t>
[[gnu::always_inline]] inline void add_product_inline(acc_t* weights, const scalar_t* row, const RowProduct& p) {
  for (const TapRun& run1 : p.runs1) {
    for (int64_t n1 = 0; n1 < run1.count; ++n1) {
      const int64_t entry1 = (run1.entry + n1) * p.entries2, kernel1 = (run1.kernel + n1 * run1.step) * p.kernel2;
      for (const TapRun& run2 : p.runs2) {
        for (int64_t n2 = 0; n2 < run2.count; ++n2) {
          const int64_t entry2 = (entry1 + run2.entry + n2) * p.entries3;
          const int64_t kernel2 = (kernel1 + run2.kernel + n2 * run2.step) * p.kernel3;
          for (const TapRun& run3 : p.runs3) {
            add_run_inline(weights + kernel2 + run3.kernel, row + entry2 + run3.entry, run3, p);
          }
        }
      }
    }
  }
}

template <typename acc_t, typename scalar_t>
void add_product(acc_t* weights, const scalar_t* row, const RowProduct& product) {
  add_product_inline(weights, row, product);
}

CONV2AFFINE_WIDE inline void add_product(float* weights, const float* row, const RowProduct& product) {
  add_product_inline(weights, row, product);
}

CONV2AFFINE_WIDE inline void add_product(double* weights, const double* row, const RowProduct& product) {
  add_product_inline(weights, row, product);
}

// Adds rows to their weights, one at a time.
class RowSums {
 public:
  RowSums(const Convolution& conv, const Taps& taps)
      : conv_(conv), taps_(taps), runs_{AxisRuns(taps[0]), AxisRuns(taps[1]), AxisRuns(taps[2])} {}

  // Adds the entries of a row with these patterns to the weights of its channel; returns their number.
  template <typename acc_t, typename scalar_t>
  int64_t add(int64_t pattern1, int64_t pattern2, int64_t pattern3, const scalar_t* row, acc_t* weights) const {
    const auto& [axis1, axis2, axis3] = conv_.axes;
    const int64_t entries2 = taps_[1].entries_of(pattern2), entries3 = taps_[2].entries_of(pattern3);
    const int64_t entries = taps_[0].entries_of(pattern1) * entries2 * entries3, all = conv_.in_per_group * entries;
    if (entries == conv_.taps() && runs_[0].is_whole(pattern1, axis1.kernel) &&
        runs_[1].is_whole(pattern2, axis2.kernel) && runs_[2].is_whole(pattern3, axis3.kernel)) {
      add_rows(weights, row, all, 1);
    } else if (entries > 0) {
      add_product(weights, row,
                  {runs_[0][pattern1], runs_[1][pattern2], runs_[2][pattern3], entries2, entries3, entries,
                   axis2.kernel, axis3.kernel, conv_.taps(), conv_.in_per_group});
    }
    return all;
  }

 private:
  const Convolution& conv_;
  const Taps& taps_;
  std::array<AxisRuns, 3> runs_;
};

}  // namespace conv2affine
