// The walk along the rows of a matrix, one row run after the other.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "cpu/row_pattern.h"
#include "rows.h"

namespace conv2affine {

// Consecutive rows of one pattern: row number n of them has its columns, each plus offset + n * step.
template <typename index_t>
struct RowRun {
  const RowPattern<index_t>& pattern;
  int64_t rows;
  int64_t co;
  int64_t offset;
  int64_t step;
};

// Walks along rows, one row run after the other; every thread has one of its own.
template <typename index_t>
class RowWalker {
 public:
  RowWalker(const MatrixRows& rows, int64_t row)
      : conv_(rows.conv), taps_(rows.taps), at_(rows.position(row)), builder_(rows) {
    const int64_t max_nnz = conv_.in_per_group * conv_.taps();
    const int64_t combinations = taps_[0].patterns() * taps_[1].patterns() * taps_[2].patterns();
    slots_ = std::clamp<int64_t>(kCachedEntries / max_nnz, 1, combinations);
    patterns_.resize(slots_);
    find_line();
  }

  // Number of consecutive lines, this one included, with equal entries, and their column shift. Only lines that lie
  // within the next `max_rows` rows count; 0 inside of a line.
  AxisTaps::Repeat lines(int64_t max_rows) const {
    if (at_.o3 > 0) return {0, 0};
    const AxisTaps::Repeat lines = taps_[1].repeat(at_.o2);
    return {std::min(max_rows / conv_.axes[2].output, lines.count), lines.step * conv_.axes[2].input};
  }

  // The next rows, as `times` repetitions of `rows` rows that have `nnz` entries together: at most `max_rows` rows, all
  // of this line.
  struct Repeats {
    int64_t rows, nnz, times;
  };
  Repeats repeats(int64_t max_rows) const {
    const Regions& regions = taps_[2].regions();
    const int64_t inside = regions.begin <= at_.o3 ? std::min(max_rows, regions.end - at_.o3) : 0;
    const int64_t periods = inside / regions.period;  // from any coordinate of the interior on
    const int64_t rows = periods > 0 ? regions.period : 1;
    const int64_t times = periods > 0 ? periods : std::min(max_rows, taps_[2].repeat(at_.o3).count);
    const int64_t along = taps_[2].nnz_before(at_.o3 + rows) - taps_[2].nnz_before(at_.o3);
    const int64_t nnz1 = taps_[0].nnz_of(taps_[0][at_.o1].pattern), nnz2 = taps_[1].nnz_of(taps_[1][at_.o2].pattern);
    return {rows, conv_.in_per_group * nnz1 * nnz2 * along, times};
  }

  // Advances by `rows`, at most to the first row of the next plane.
  void skip(int64_t rows) {
    at_.advance(conv_, rows);
    if (at_.o3 == 0) find_line();
  }

  // The next row run, of at most `max_rows` rows; there must be a row left.
  RowRun<index_t> next(int64_t max_rows) {
    const Place place3 = taps_[2][at_.o3];
    const int64_t id = line_id_ + place3.pattern;
    auto& [cached_id, pattern] = patterns_[id < slots_ ? id : id % slots_];
    if (cached_id != id) {
      builder_.make(pattern, taps_[0][at_.o1].pattern, taps_[1][at_.o2].pattern, place3.pattern);
      cached_id = id;
    }
    const AxisTaps::Repeat repeat = taps_[2].repeat(at_.o3);
    const RowRun<index_t> run{pattern, std::min(max_rows, repeat.count), at_.co, line_offset_ + place3.offset,
                              repeat.step};
    skip(run.rows);
    return run;
  }

 private:
  // Cache budget in entries (fits L2); evicted patterns are rebuilt, which takes two to three times as long as to use
  // them.
  static constexpr int64_t kCachedEntries = 1 << 16;

  struct Cached {
    int64_t id = -1;
    RowPattern<index_t> pattern;
  };

  // What all rows of one output line share.
  void find_line() {
    const auto& [axis1, axis2, axis3] = conv_.axes;
    const Place place1 = taps_[0][at_.o1], place2 = taps_[1][at_.o2];
    const int64_t ci = at_.co / conv_.out_per_group * conv_.in_per_group;
    line_offset_ = ci * conv_.inputs() + (place1.offset * axis2.input + place2.offset) * axis3.input;
    line_id_ = (place1.pattern * taps_[1].patterns() + place2.pattern) * taps_[2].patterns();
  }

  const Convolution& conv_;
  const std::array<AxisTaps, 3>& taps_;
  Position at_;
  int64_t line_offset_, line_id_;
  int64_t slots_;
  std::vector<Cached> patterns_;  // the pattern of identity `id` is in slot id % slots, if anywhere
  RowPatternBuilder<index_t> builder_;
};

}  // namespace conv2affine
