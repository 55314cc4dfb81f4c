// The rows of a matrix: which columns each of them has, and which weights go there.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "channel_pattern.h"
#include "convolution.h"
#include "taps.h"

namespace conv2affine {

// Note [Rows]
//
// A row (co, o) is the product of three axis taps, one an axis, for each input channel of co's group. Rows whose output
// positions have the same three patterns (Note [Patterns]) are one sequence of (column, weight), moved along:
//
//     columns   shift + columns[e]      ascending; counted from the first input channel of the group
//     weights   taps[e]                 counted from the first weight of co
//
// So the sequence is made once for each combination of patterns, of which there are few (27 for a padded 3-D
// convolution, however large), and a row is one flat loop over it: a scatter for a dense matrix, an addition and a copy
// for a sparse one, a gather for the adjoint. Along the last axis, the rows between the margins are one run: they have
// the same sequence and the same weights, each moved by `stride` columns.

// The entries of a row. Usually entry e is the weight taps[e]; where taps overlap it is the sum over
// taps[ends[e - 1]] ... taps[ends[e] - 1], in ascending order, and `ends` has one element an entry.
template <typename index_t>
struct RowPattern {
  int64_t id = -1;
  std::vector<index_t> columns;
  std::vector<int64_t> taps;
  std::vector<int64_t> ends;
  bool whole = false;  // taps are 0, 1, 2, ...: the row is all weights of co, as they lie

  int64_t size() const { return columns.size(); }

  // Calls f(e, value of entry e) for each entry. `weights` points at the first weight of co.
  // The first tap is stored, not added to zero: then -0.0 and NaN payloads survive.
  template <typename scalar_t, typename F>
  void for_each(const scalar_t* weights, const F& f) const {
    const int64_t* tap = taps.data();
    const int64_t entries = size();
    if (whole) {
      for (int64_t e = 0; e < entries; ++e) f(e, weights[e]);
    } else if (ends.empty()) {
      for (int64_t e = 0; e < entries; ++e) f(e, weights[tap[e]]);
    } else {
      for (int64_t e = 0, t = 0; e < entries; ++e) {
        scalar_t sum = weights[tap[t++]];
        while (t < ends[e]) sum += weights[tap[t++]];
        f(e, sum);
      }
    }
  }
};

// The entries that a thread should at least have to write or read: below this, waking it costs more than it gains.
inline constexpr int64_t kGrainEntries = 32768;

// The entries that a line may have to be copied or added to as a whole: its end pushes its beginning out of the
// first-level cache otherwise.
inline constexpr int64_t kLineEntries = 4096;

// The rows that kGrainEntries makes, at the most.
inline int64_t grain_rows(const Convolution& conv) {
  return std::max<int64_t>(1, kGrainEntries / (conv.in_per_group * conv.taps()));
}

// A row by its output channel and its output coordinates.
struct Position {
  int64_t co, o1, o2, o3;

  // So many rows further, at most to the first row of the next plane.
  void advance(const Convolution& conv, int64_t rows) {
    o3 += rows;
    if (o3 < conv.axes[2].output) return;
    o2 += o3 / conv.axes[2].output;
    o3 %= conv.axes[2].output;
    if (o2 < conv.axes[1].output) return;
    o2 = 0;
    if (++o1 < conv.axes[0].output) return;
    o1 = 0;
    ++co;
  }
};

inline Position position(const Convolution& conv, int64_t row) {
  const auto& [axis1, axis2, axis3] = conv.axes;
  return {row / conv.outputs(), row / (axis3.output * axis2.output) % axis1.output, row / axis3.output % axis2.output,
          row % axis3.output};
}

// One table an axis.
using Taps = std::array<AxisTaps, 3>;

inline Taps make_taps(const Convolution& conv) {
  return {AxisTaps(conv.axes[0]), AxisTaps(conv.axes[1]), AxisTaps(conv.axes[2])};
}

// The matrix as its rows see it: as it is, or transposed.
struct Sides {
  Convolution conv;
  Taps taps;
};

inline Sides make_sides(const Convolution& conv, bool transpose) {
  if (!transpose) return {conv, make_taps(conv)};
  const auto& [axis1, axis2, axis3] = conv.axes;
  return {conv.transposed(), {AxisTaps::transposed(axis1), AxisTaps::transposed(axis2), AxisTaps::transposed(axis3)}};
}

// Entries of the matrix in the rows before `row`, from 0 to rows: closed-form, so that every thread knows where its
// part of a sparse matrix begins.
inline int64_t entries_before(const Convolution& conv, const Taps& taps, int64_t row) {
  const auto [co, o1, o2, o3] = position(conv, row);
  const auto along = [&](int axis, int64_t o) {
    return Counts{taps[axis].entries_before(o), taps[axis].entries_at(o), taps[axis].entries()};
  };
  return conv.in_per_group * entries_before(co, along(0, o1), along(1, o2), along(2, o3));
}

// Rows that follow each other: row number n of them has the columns shift + n * step + pattern.columns[e].
template <typename index_t>
struct Run {
  const RowPattern<index_t>& pattern;
  int64_t rows;
  int64_t co;
  int64_t shift;
  int64_t step;
};

// Walks along rows, run by run; every thread has one of its own.
template <typename index_t>
class Rows {
 public:
  Rows(const Convolution& conv, const Taps& taps, int64_t row) : conv_(conv), taps_(taps), at_(position(conv, row)) {
    const int64_t most = conv.in_per_group * conv.taps();  // entries of a pattern
    const int64_t combinations = taps[0].patterns() * taps[1].patterns() * taps[2].patterns();
    slots_ = std::clamp<int64_t>(kCachedEntries / most, 1, combinations);
    patterns_.resize(slots_);
    find_line();
  }

  // How many lines have the same entries as the one that begins here, itself included, of no more than `most` rows; 0
  // inside of a line, or where no line is whole.
  int64_t lines(int64_t most) const {
    return at_.o3 > 0 ? 0 : std::min(most / conv_.axes[2].output, taps_[1].run(at_.o2));
  }

  // Passes over rows, to the first one of the next plane at most.
  void skip(int64_t rows) {
    at_.advance(conv_, rows);
    if (at_.o3 == 0) find_line();
  }

  // The next run, of no more than `most` rows; there must be a row left.
  Run<index_t> next(int64_t most) {
    const Place place3 = taps_[2][at_.o3];
    const int64_t id = line_id_ + place3.pattern;
    RowPattern<index_t>& pattern = patterns_[id < slots_ ? id : id % slots_];
    if (pattern.id != id) make(pattern, id);
    const Run<index_t> run{pattern, std::min(most, taps_[2].run(at_.o3)), at_.co, line_shift_ + place3.shift,
                           taps_[2].step()};
    skip(run.rows);
    return run;
  }

 private:
  // Patterns that are kept, in entries: what stays in a core's second-level cache. Where there are more, they are made
  // again when they come up again, which takes two to three times as long as to use them.
  static constexpr int64_t kCachedEntries = 1 << 16;

  // What all rows of one output line share.
  void find_line() {
    const auto& [axis1, axis2, axis3] = conv_.axes;
    const Place place1 = taps_[0][at_.o1], place2 = taps_[1][at_.o2];
    const int64_t ci = at_.co / conv_.out_per_group * conv_.in_per_group;
    line_shift_ = ci * conv_.inputs() + (place1.shift * axis2.input + place2.shift) * axis3.input;
    line_id_ = (place1.pattern * taps_[1].patterns() + place2.pattern) * taps_[2].patterns();
  }

  void make(RowPattern<index_t>& pattern, int64_t id) {
    channel_.make(conv_, taps_, taps_[0][at_.o1].pattern, taps_[1][at_.o2].pattern, taps_[2][at_.o3].pattern);
    const int64_t inputs = conv_.inputs(), kernel = conv_.taps(), entries = channel_.size();
    pattern.id = id;
    pattern.whole = channel_.whole;
    pattern.columns.resize(conv_.in_per_group * entries);
    pattern.taps.resize(conv_.in_per_group * channel_.taps.size());
    pattern.ends.resize(conv_.in_per_group * channel_.ends.size());
    for (int64_t ci = 0, e = 0, t = 0; ci < conv_.in_per_group; ++ci) {
      for (const Tap& tap : channel_.taps) pattern.taps[t++] = ci * kernel + tap.kernel;
      for (int64_t c = 0; c < entries; ++c) {
        pattern.columns[e++] = static_cast<index_t>(ci * inputs + channel_.taps[channel_.end(c) - 1].input);
      }
    }
    for (int64_t e = 0; e < static_cast<int64_t>(pattern.ends.size()); ++e) {
      pattern.ends[e] = e / entries * channel_.taps.size() + channel_.end(e % entries);
    }
  }

  const Convolution& conv_;
  const Taps& taps_;
  Position at_;
  int64_t line_shift_, line_id_;
  int64_t slots_;
  std::vector<RowPattern<index_t>> patterns_;  // the pattern of identity `id` is in slot id % slots, if anywhere
  ChannelPattern channel_;                     // of the pattern being made
};

}  // namespace conv2affine
