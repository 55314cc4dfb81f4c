// The rows of a matrix as flat lists: which columns each of them has, and which weights go there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "rows.h"

namespace conv2affine {

// Note [Rows]
//
// A row (co, o) is the product of three axis taps, one per axis, for each input channel of co's group. Rows whose
// output positions have the same three patterns (Note [Patterns]) are one sequence of (column, weight), moved along:
//
//     columns   offset + columns[e]     ascending; counted from the first input channel of the group
//     weights   taps[e]                 counted from the first weight of co
//
// So the sequence is made once for each combination of patterns, of which there are few (27 for a padded 3-D
// convolution, however large), and a row is one flat loop over it: a scatter for a dense matrix, an addition and a copy
// for a sparse one, a gather for the adjoint. Along the last axis, the rows between the borders are one row run: they
// have the same sequence and the same weights, each moved by `stride` columns.

// The entries of a row. Usually entry e is the weight taps[e]; where taps overlap it is the sum over
// taps[ends[e - 1]] ... taps[ends[e] - 1], in ascending order, and `ends` has one element per entry.
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
    const int64_t nnz = size();
    if (whole) {
      for (int64_t e = 0; e < nnz; ++e) f(e, weights[e]);
    } else if (ends.empty()) {
      for (int64_t e = 0; e < nnz; ++e) f(e, weights[tap[e]]);
    } else {
      for (int64_t e = 0, t = 0; e < nnz; ++e) {
        scalar_t sum = weights[tap[t++]];
        while (t < ends[e]) sum = static_cast<scalar_t>(sum + weights[tap[t++]]);
        f(e, sum);
      }
    }
  }

  // The transpose of the above: adds entry e to each of its weights.
  template <typename scalar_t>
  void add(const scalar_t* entries, scalar_t* weights) const {
    const int64_t* tap = taps.data();
    const int64_t nnz = size();
    if (ends.empty()) {
      for (int64_t e = 0; e < nnz; ++e) weights[tap[e]] += entries[e];
    } else {
      for (int64_t e = 0, t = 0; e < nnz; ++e) {
        while (t < ends[e]) weights[tap[t++]] += entries[e];
      }
    }
  }
};

// Consecutive rows of one pattern: row number n of them has the columns offset + n * step + pattern.columns[e].
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
  RowWalker(const MatrixRows& rows, int64_t row) : conv_(rows.conv), taps_(rows.taps), at_(rows.position(row)) {
    const int64_t most = conv_.in_per_group * conv_.taps();  // entries of a pattern
    const int64_t combinations = taps_[0].patterns() * taps_[1].patterns() * taps_[2].patterns();
    slots_ = std::clamp<int64_t>(kCachedEntries / most, 1, combinations);
    patterns_.resize(slots_);
    find_line();
  }

  // How many lines have the same entries as the one that begins here, itself included, of no more than `most` rows, and
  // by how much each is moved; 0 inside of a line, or where no line is whole.
  AxisTaps::Repeat lines(int64_t most) const {
    if (at_.o3 > 0) return {0, 0};
    const AxisTaps::Repeat lines = taps_[1].repeat(at_.o2);
    return {std::min(most / conv_.axes[2].output, lines.count), lines.step * conv_.axes[2].input};
  }

  // The next rows, as `times` repetitions of `rows` rows that have `nnz` entries together, no more than `most` rows in
  // all and none beyond the line.
  struct Repeats {
    int64_t rows, nnz, times;
  };
  Repeats repeats(int64_t most) const {
    const Zones& zones = taps_[2].zones();
    const int64_t inside = zones.begin <= at_.o3 ? std::min(most, zones.end - at_.o3) : 0;
    const int64_t turns = inside / zones.period;  // from any coordinate of the interior on
    const int64_t rows = turns > 0 ? zones.period : 1;
    const int64_t times = turns > 0 ? turns : std::min(most, taps_[2].repeat(at_.o3).count);
    const int64_t along = taps_[2].nnz_before(at_.o3 + rows) - taps_[2].nnz_before(at_.o3);
    const int64_t nnz1 = taps_[0].nnz_of(taps_[0][at_.o1].pattern), nnz2 = taps_[1].nnz_of(taps_[1][at_.o2].pattern);
    return {rows, conv_.in_per_group * nnz1 * nnz2 * along, times};
  }

  // Passes over rows, to the first one of the next plane at most.
  void skip(int64_t rows) {
    at_.advance(conv_, rows);
    if (at_.o3 == 0) find_line();
  }

  // The next row run, of no more than `most` rows; there must be a row left.
  RowRun<index_t> next(int64_t most) {
    const Place place3 = taps_[2][at_.o3];
    const int64_t id = line_id_ + place3.pattern;
    RowPattern<index_t>& pattern = patterns_[id < slots_ ? id : id % slots_];
    if (pattern.id != id) make(pattern, id);
    const AxisTaps::Repeat repeat = taps_[2].repeat(at_.o3);
    const RowRun<index_t> run{pattern, std::min(most, repeat.count), at_.co, line_offset_ + place3.offset, repeat.step};
    skip(run.rows);
    return run;
  }

 private:
  // Patterns that are kept, in entries: what stays in a core's second-level cache. Where there are more, they are made
  // again when they come up again, which takes two to three times as long as to use them.
  static constexpr int64_t kCachedEntries = 1 << 16;

  // The entries of a pattern along one axis, one by one.
  struct AxisEntries {
    std::vector<int64_t> inputs, taps, ends;

    void make(const AxisTaps& axis, int64_t pattern) {
      inputs.resize(axis.nnz_of(pattern));
      taps.clear();
      ends.clear();
      int64_t e = 0;
      for (const TapRun& run : axis.runs(pattern)) {
        const std::span<const TapTerm> terms = axis.terms(run);
        for (int64_t n = 0; n < run.count; ++n) inputs[e++] = run.input + n * run.step;
        if (axis.most_taps() == 1) {
          const int64_t first = taps.size();
          taps.resize(first + run.count);
          for (int64_t n = 0; n < run.count; ++n) taps[first + n] = terms[0].kernel + n * terms[0].step;
          continue;
        }
        for (int64_t n = 0; n < run.count; ++n) {
          for (const TapTerm& term : terms) {
            for (int64_t t = 0; t < term.taps; ++t) taps.push_back(term.kernel + n * term.step + t);
          }
          ends.push_back(taps.size());
        }
      }
    }

    int64_t begin(int64_t e) const { return e == 0 ? 0 : end(e - 1); }
    int64_t end(int64_t e) const { return ends.empty() ? e + 1 : ends[e]; }
  };

  // What all rows of one output line share.
  void find_line() {
    const auto& [axis1, axis2, axis3] = conv_.axes;
    const Place place1 = taps_[0][at_.o1], place2 = taps_[1][at_.o2];
    const int64_t ci = at_.co / conv_.out_per_group * conv_.in_per_group;
    line_offset_ = ci * conv_.inputs() + (place1.offset * axis2.input + place2.offset) * axis3.input;
    line_id_ = (place1.pattern * taps_[1].patterns() + place2.pattern) * taps_[2].patterns();
  }

  void make(RowPattern<index_t>& pattern, int64_t id) {
    const int64_t pattern1 = taps_[0][at_.o1].pattern, pattern2 = taps_[1][at_.o2].pattern;
    const int64_t pattern3 = taps_[2][at_.o3].pattern;
    const auto& [axis1, axis2, axis3] = conv_.axes;
    pattern.id = id;
    pattern.whole = taps_[0].is_whole(pattern1, axis1.kernel) && taps_[1].is_whole(pattern2, axis2.kernel) &&
                    taps_[2].is_whole(pattern3, axis3.kernel);
    entries1_.make(taps_[0], pattern1);
    entries2_.make(taps_[1], pattern2);
    entries3_.make(taps_[2], pattern3);
    pattern.ends.clear();
    if (taps_[0].most_taps() * taps_[1].most_taps() * taps_[2].most_taps() == 1) {
      make_product(pattern);
    } else {
      make_sums(pattern);
    }
    repeat_in_channels(pattern);
  }

  // The product of the axes, in the first input channel.
  void make_product(RowPattern<index_t>& pattern) {
    const auto& [axis1, axis2, axis3] = conv_.axes;
    const int64_t inner = entries3_.inputs.size();
    const int64_t nnz = entries1_.inputs.size() * entries2_.inputs.size() * inner;
    pattern.columns.resize(conv_.in_per_group * nnz);
    pattern.taps.resize(conv_.in_per_group * nnz);
    index_t* column = pattern.columns.data();
    int64_t* tap = pattern.taps.data();
    for (size_t e1 = 0; e1 < entries1_.inputs.size(); ++e1) {
      for (size_t e2 = 0; e2 < entries2_.inputs.size(); ++e2, column += inner, tap += inner) {
        const int64_t line = (entries1_.inputs[e1] * axis2.input + entries2_.inputs[e2]) * axis3.input;
        const int64_t kernel_line = (entries1_.taps[e1] * axis2.kernel + entries2_.taps[e2]) * axis3.kernel;
        for (int64_t e3 = 0; e3 < inner; ++e3) column[e3] = static_cast<index_t>(line + entries3_.inputs[e3]);
        for (int64_t e3 = 0; e3 < inner; ++e3) tap[e3] = kernel_line + entries3_.taps[e3];
      }
    }
  }

  // The same where taps add up.
  void make_sums(RowPattern<index_t>& pattern) {
    const auto& [axis1, axis2, axis3] = conv_.axes;
    pattern.columns.clear();
    pattern.taps.clear();
    for (size_t e1 = 0; e1 < entries1_.inputs.size(); ++e1) {
      for (size_t e2 = 0; e2 < entries2_.inputs.size(); ++e2) {
        for (size_t e3 = 0; e3 < entries3_.inputs.size(); ++e3) {
          const int64_t line = entries1_.inputs[e1] * axis2.input + entries2_.inputs[e2];
          pattern.columns.push_back(static_cast<index_t>(line * axis3.input + entries3_.inputs[e3]));
          for (int64_t t1 = entries1_.begin(e1); t1 < entries1_.end(e1); ++t1) {
            for (int64_t t2 = entries2_.begin(e2); t2 < entries2_.end(e2); ++t2) {
              for (int64_t t3 = entries3_.begin(e3); t3 < entries3_.end(e3); ++t3) {
                const int64_t kernel_line = entries1_.taps[t1] * axis2.kernel + entries2_.taps[t2];
                pattern.taps.push_back(kernel_line * axis3.kernel + entries3_.taps[t3]);
              }
            }
          }
          pattern.ends.push_back(pattern.taps.size());
        }
      }
    }
    pattern.columns.resize(conv_.in_per_group * pattern.columns.size());
    pattern.taps.resize(conv_.in_per_group * pattern.taps.size());
    pattern.ends.resize(conv_.in_per_group * pattern.ends.size());
  }

  // From the first input channel to the others.
  void repeat_in_channels(RowPattern<index_t>& pattern) const {
    const auto repeat = [&](auto& list, int64_t each) {
      const int64_t size = list.size(), count = size / conv_.in_per_group;
      for (int64_t e = count; e < size; ++e) {
        list[e] = static_cast<std::decay_t<decltype(list[0])>>(list[e - count] + each);
      }
    };
    repeat(pattern.columns, conv_.inputs());
    repeat(pattern.ends, static_cast<int64_t>(pattern.taps.size()) / conv_.in_per_group);
    repeat(pattern.taps, conv_.taps());
  }

  const Convolution& conv_;
  const std::array<AxisTaps, 3>& taps_;
  Position at_;
  int64_t line_offset_, line_id_;
  int64_t slots_;
  std::vector<RowPattern<index_t>> patterns_;   // the pattern of identity `id` is in slot id % slots, if anywhere
  AxisEntries entries1_, entries2_, entries3_;  // of the pattern being made
};

}  // namespace conv2affine
