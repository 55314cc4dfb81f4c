// Axis taps: for each output coordinate, what it reads, sorted by input coordinate.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "axis.h"
#include "regions.h"

namespace conv2affine {

// Note [Patterns]
//
// Away from the borders every output coordinate reads the same taps, shifted; only the borders differ. With
// input 6, kernel 3, padding 1, stride 1 (one row per output coordinate, the tap that reads each input coordinate):
//
//            i = 0 1 2 3 4 5
//     o = 0      1 2 . . . .    pattern 0   left border
//     o = 1      0 1 2 . . .    pattern 1   interior, offset 0
//     o = 2      . 0 1 2 . .    pattern 1   interior, offset 1
//     o = 3      . . 0 1 2 .    pattern 1   interior, offset 2
//     o = 4      . . . 0 1 2    pattern 1   interior, offset 3
//     o = 5      . . . . 0 1    pattern 2   right border
//
// So the table holds one pattern for each coordinate of the borders and one for the interior, however long the axis. A
// transposed convolution repeats with period `stride` instead of 1: then the interior has `stride` patterns. Beyond the
// reach of the kernel all coordinates of a border read the same (nothing, or a replicated input): they are saturated,
// and share a pattern.
//
// Note [Tap runs]
//
// Within a pattern, the input coordinates are an arithmetic progression, and so are the taps that read them: i = 0, 1
// through k = 1, 2 above. That is one run of entries, whatever the length of the kernel. Padding that is folded back
// adds a second and a third progression; where they meet, an entry has several taps, whose weights add up. So a pattern
// is a few runs, each in ascending order of the input, and each with the terms of its entries:
//
//     entry n of a run reads    input + n * step
//     through the taps          kernel + n * step, and the `taps - 1` that follow it, for each term
//
// in ascending order of the taps. Only where progressions interleave (folded padding with dilation) are there more
// runs: one per entry.

struct Progression;  // taps.cpp merges them into runs

class AxisTaps {
 public:
  explicit AxisTaps(const Axis& axis);

  // The pairs of an axis from the other side: for each of its input coordinates, the output coordinates that read it,
  // as runs of (output, kernel).
  static AxisTaps transposed(const Axis& axis);

  // o must lie in [0, axis.output).
  Place operator[](int64_t o) const { return regions_.place(o); }

  // `count` consecutive outputs from o share its pattern, each shifted by `step`.
  struct Repeat {
    int64_t count, step;
  };
  Repeat repeat(int64_t o) const {
    if (regions_.begin <= o && o < regions_.end) return {regions_.patterns == 1 ? regions_.end - o : 1, regions_.step};
    if (o <= regions_.saturated_left && o < regions_.begin) return {regions_.saturated_left + 1 - o, 0};
    return {o >= regions_.saturated_right && o >= regions_.end ? output_ - o : 1, 0};
  }

  const Regions& regions() const { return regions_; }
  int64_t patterns() const { return start_.size() - 1; }

  std::span<const TapRun> runs(int64_t pattern) const {
    return {runs_.data() + start_[pattern], runs_.data() + start_[pattern + 1]};
  }
  std::span<const TapTerm> terms(const TapRun& run) const {
    return {terms_.data() + run.first_term, terms_.data() + (&run + 1)->first_term};
  }

  // The maximum number of taps through which an output coordinate reads one input coordinate: from 2 on, weights add
  // up.
  int64_t max_taps() const { return max_taps_; }

  // Whether the entries of a pattern are all `kernel` taps in ascending order, so that its weights are contiguous.
  bool is_contiguous(int64_t pattern, int64_t kernel) const {
    const std::span<const TapRun> all = runs(pattern);
    return max_taps_ == 1 && all.size() == 1 && all[0].count == kernel && (kernel == 1 || terms(all[0])[0].step == 1);
  }

  // Whether the entries of a pattern read consecutive input coordinates through consecutive taps, one each.
  bool is_consecutive(int64_t pattern) const {
    const std::span<const TapRun> all = runs(pattern);
    return max_taps_ == 1 && all.size() == 1 && (all[0].count == 1 || (all[0].step == 1 && terms(all[0])[0].step == 1));
  }

  // Number of input coordinates that an output coordinate with this pattern reads, each counted once.
  int64_t nnz_of(int64_t pattern) const { return nnz_[pattern + 1] - nnz_[pattern]; }

  // The same summed over the output coordinates before o, which must lie in [0, axis.output].
  int64_t nnz_before(int64_t o) const { return regions_.total_before(nnz_.data(), o); }

  // The same summed over all output coordinates.
  int64_t nnz() const { return nnz_before(output_); }

  // The arrays of the table, with offsets by pattern: of its entries, and of its runs. After the last run there is an
  // empty one, whose first_term ends the terms of the last.
  struct Arrays {
    std::span<const int64_t> nnz_before, first_run;
    std::span<const TapRun> runs;
    std::span<const TapTerm> terms;
  };
  Arrays arrays() const { return {nnz_, start_, runs_, terms_}; }

 private:
  // reads(o, progressions) appends what output coordinate o reads, in any order.
  template <typename Reads>
  AxisTaps(int64_t output, const Regions& regions, const Reads& reads);

  // Merges what one output coordinate reads into a pattern.
  void add_pattern(std::vector<Progression>& progressions);
  // Appends a run of `count` entries from `input` on, whose terms are the first taps of these progressions.
  void add_run(int64_t input, int64_t step, int64_t count, std::span<const Progression> together);

  int64_t output_;
  Regions regions_;
  int64_t max_taps_ = 1;
  std::vector<TapRun> runs_;  // and an empty one at the end, for its first_term
  std::vector<TapTerm> terms_;
  std::vector<int64_t> start_;  // runs of pattern p: [start[p], start[p + 1])
  std::vector<int64_t> nnz_;    // entries of the patterns before p
};

}  // namespace conv2affine
