// The rows of a matrix: which columns each of them has, and which weights go there.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

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

// The rows that this makes, at the most.
inline int64_t grain_rows(const Convolution& conv) {
  return std::max<int64_t>(1, kGrainEntries / (conv.in_per_group * conv.taps()));
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
  const int64_t o3 = row % conv.axes[2].output;
  const int64_t o2 = row / conv.axes[2].output % conv.axes[1].output;
  const int64_t o1 = row / (conv.axes[2].output * conv.axes[1].output) % conv.axes[0].output;
  const int64_t co = row / conv.outputs();
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
  Rows(const Convolution& conv, const Taps& taps, int64_t row) : conv_(conv), taps_(taps) {
    overlaps_ = std::any_of(taps.begin(), taps.end(), [](const AxisTaps& t) { return t.overlaps(); });
    const int64_t most = conv.in_per_group * conv.taps();  // entries of a pattern
    const int64_t combinations = taps[0].patterns() * taps[1].patterns() * taps[2].patterns();
    slots_ = std::clamp<int64_t>(kCachedEntries / most, 1, combinations);
    keeps_all_ = slots_ == combinations;
    patterns_.resize(slots_);
    co_ = row / conv.outputs();
    o3_ = row % conv.axes[2].output;
    o2_ = row / conv.axes[2].output % conv.axes[1].output;
    o1_ = row / (conv.axes[2].output * conv.axes[1].output) % conv.axes[0].output;
    find_line();
  }

  // How many patterns are kept, and whether these are all, which then keep their places and have ids below slots().
  int64_t slots() const { return slots_; }
  bool keeps_all() const { return keeps_all_; }

  // The next run, of no more than `most` rows; there must be a row left.
  Run<index_t> next(int64_t most) {
    const Place place3 = taps_[2][o3_];
    const int64_t id = line_id_ + place3.pattern;
    RowPattern<index_t>& pattern = patterns_[id < slots_ ? id : id % slots_];
    if (pattern.id != id) make(pattern, id);
    const Run<index_t> run{pattern, std::min(most, taps_[2].run(o3_)), co_, line_shift_ + place3.shift,
                           taps_[2].step()};
    step(run.rows);
    return run;
  }

 private:
  // Patterns that are kept, in entries: what stays in a core's second-level cache. Where there are more, they are made
  // again when they come up again, which takes two to three times as long as to use them.
  static constexpr int64_t kCachedEntries = 1 << 16;

  // What all rows of one output line share.
  void find_line() {
    const auto& [axis1, axis2, axis3] = conv_.axes;
    const Place place1 = taps_[0][o1_], place2 = taps_[1][o2_];
    const int64_t ci = co_ / conv_.out_per_group * conv_.in_per_group;
    line_shift_ = ci * conv_.inputs() + (place1.shift * axis2.input + place2.shift) * axis3.input;
    line_id_ = (place1.pattern * taps_[1].patterns() + place2.pattern) * taps_[2].patterns();
  }

  // `rows` rows further, at most to the beginning of the next line.
  void step(int64_t rows) {
    o3_ += rows;
    if (o3_ < conv_.axes[2].output) return;
    o3_ = 0;
    if (++o2_ == conv_.axes[1].output) {
      o2_ = 0;
      if (++o1_ == conv_.axes[0].output) {
        o1_ = 0;
        ++co_;
      }
    }
    find_line();
  }

  void make(RowPattern<index_t>& pattern, int64_t id) {
    const auto& [axis1, axis2, axis3] = conv_.axes;
    channel_.clear();
    for (const Tap& t1 : taps_[0].taps(taps_[0][o1_].pattern)) {
      for (const Tap& t2 : taps_[1].taps(taps_[1][o2_].pattern)) {
        for (const Tap& t3 : taps_[2].taps(taps_[2][o3_].pattern)) {
          channel_.push_back({(t1.input * axis2.input + t2.input) * axis3.input + t3.input,
                              (t1.kernel * axis2.kernel + t2.kernel) * axis3.kernel + t3.kernel});
        }
      }
    }
    if (overlaps_) {  // only then is the product out of order
      std::stable_sort(channel_.begin(), channel_.end(), [](const Tap& a, const Tap& b) { return a.input < b.input; });
    }
    const int64_t inputs = conv_.inputs(), kernel = conv_.taps(), channel = channel_.size();
    pattern.id = id;
    pattern.columns.resize(conv_.in_per_group * channel);
    pattern.taps.resize(conv_.in_per_group * channel);
    pattern.ends.clear();
    int64_t entries = 0, t = 0;
    for (int64_t ci = 0; ci < conv_.in_per_group; ++ci) {
      for (int64_t c = 0; c < channel; ++c) {
        pattern.taps[t++] = ci * kernel + channel_[c].kernel;
        const bool joins = overlaps_ && c > 0 && channel_[c].input == channel_[c - 1].input;
        if (!joins) pattern.columns[entries++] = static_cast<index_t>(ci * inputs + channel_[c].input);
        if (!overlaps_) continue;
        pattern.ends.resize(entries);
        pattern.ends.back() = t;
      }
    }
    pattern.columns.resize(entries);
    // Compared one by one: in a transposed matrix, several entries of a row may be the same weight.
    pattern.whole = channel == kernel && !overlaps_;
    for (int64_t c = 0; pattern.whole && c < channel; ++c) pattern.whole = channel_[c].kernel == c;
  }

  const Convolution& conv_;
  const Taps& taps_;
  bool overlaps_;
  int64_t co_, o1_, o2_, o3_;
  int64_t line_shift_, line_id_;
  int64_t slots_;
  bool keeps_all_;
  std::vector<RowPattern<index_t>> patterns_;  // the pattern of identity `id` is in slot id % slots, if anywhere
  std::vector<Tap> channel_;                   // of the pattern being made: (column, weight) within one input channel
};

}  // namespace conv2affine
