// The pattern of a row: which columns it has, and which weights go there.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "rows.h"

namespace conv2affine {

// Note [Rows]
//
// A row (co, o) is the product of three axis taps, one per axis, for each input channel of co's group. Rows whose
// output positions have the same three patterns (Note [Patterns]) are one sequence of (column, weight), shifted:
//
//     columns   offset + columns[e]     ascending; counted from the first input channel of the group
//     weights   taps[e]                 counted from the first weight of co
//
// So the sequence is made once for each combination of patterns, of which there are few (27 for a padded 3-D
// convolution, however large), and a row is one flat loop over it: a scatter for a dense matrix, an addition and a copy
// for a sparse one, a gather for the adjoint. Along the last axis, the rows between the borders are one row run: they
// have the same sequence and the same weights, each shifted by `stride` columns.

// The entries of a row. Usually entry e is the weight taps[e]; where taps overlap it is the sum over
// taps[ends[e - 1]] ... taps[ends[e] - 1], in ascending order, and `ends` has one element per entry.
//
// Where the columns and the taps of a row are both consecutive, as in a 1-D convolution, there are no lists: entry e is
// the weight first_tap + e at first_column + e. With a kernel as long as the input each row has a pattern of its own,
// and its lists would take longer than the row.
template <typename index_t>
struct RowPattern {
  std::vector<index_t> columns;
  std::vector<int64_t> taps;
  std::vector<int64_t> ends;
  bool contiguous = false;  // taps are 0, 1, 2, ...: the row is all weights of co, in order
  int64_t consecutive = 0;  // number of entries, if both are consecutive
  int64_t first_column = 0, first_tap = 0;

  int64_t size() const { return consecutive > 0 ? consecutive : static_cast<int64_t>(columns.size()); }

  // Calls f(e, column, value of entry e) for each entry. `weights` points at the first weight of co.
  // The first tap is stored, not added to zero: then -0.0 and NaN payloads survive.
  template <typename scalar_t, typename F>
  void for_each(const scalar_t* weights, const F& f) const {
    const index_t* column = columns.data();
    const int64_t* tap = taps.data();
    const int64_t nnz = size();
    if (consecutive > 0) {
      for (int64_t e = 0; e < nnz; ++e) f(e, first_column + e, weights[first_tap + e]);
    } else if (contiguous) {
      for (int64_t e = 0; e < nnz; ++e) f(e, column[e], weights[e]);
    } else if (ends.empty()) {
      for (int64_t e = 0; e < nnz; ++e) f(e, column[e], weights[tap[e]]);
    } else {
      for (int64_t e = 0, t = 0; e < nnz; ++e) {
        scalar_t sum = weights[tap[t++]];
        while (t < ends[e]) sum = static_cast<scalar_t>(sum + weights[tap[t++]]);
        f(e, column[e], sum);
      }
    }
  }

  // Calls f(e, column) for each entry.
  template <typename F>
  void for_each_column(const F& f) const {
    const index_t* column = columns.data();
    const int64_t nnz = size();
    if (consecutive > 0) {
      for (int64_t e = 0; e < nnz; ++e) f(e, first_column + e);
    } else {
      for (int64_t e = 0; e < nnz; ++e) f(e, column[e]);
    }
  }

  // The transpose of the above: adds entry e to each of its weights.
  template <typename scalar_t>
  void add(const scalar_t* entries, scalar_t* weights) const {
    const int64_t* tap = taps.data();
    const int64_t nnz = size();
    if (consecutive > 0) {
      for (int64_t e = 0; e < nnz; ++e) weights[first_tap + e] += entries[e];
    } else if (ends.empty()) {
      for (int64_t e = 0; e < nnz; ++e) weights[tap[e]] += entries[e];
    } else {
      for (int64_t e = 0, t = 0; e < nnz; ++e) {
        while (t < ends[e]) weights[tap[t++]] += entries[e];
      }
    }
  }
};

// Makes the pattern of a combination of axis patterns.
template <typename index_t>
class RowPatternBuilder {
 public:
  explicit RowPatternBuilder(const MatrixRows& rows) : conv_(rows.conv), taps_(rows.taps) {}

  void make(RowPattern<index_t>& pattern, int64_t pattern1, int64_t pattern2, int64_t pattern3) {
    const auto& [axis1, axis2, axis3] = conv_.axes;
    pattern.consecutive = 0;
    if (conv_.in_per_group == 1 && taps_[0].nnz_of(pattern1) == 1 && taps_[1].nnz_of(pattern2) == 1 &&
        taps_[0].is_consecutive(pattern1) && taps_[1].is_consecutive(pattern2) && taps_[2].is_consecutive(pattern3)) {
      make_consecutive(pattern, taps_[0].runs(pattern1)[0], taps_[1].runs(pattern2)[0], taps_[2].runs(pattern3)[0]);
      return;
    }
    pattern.contiguous = taps_[0].is_contiguous(pattern1, axis1.kernel) &&
                         taps_[1].is_contiguous(pattern2, axis2.kernel) &&
                         taps_[2].is_contiguous(pattern3, axis3.kernel);
    entries1_.make(taps_[0], pattern1);
    entries2_.make(taps_[1], pattern2);
    entries3_.make(taps_[2], pattern3);
    pattern.ends.clear();
    if (taps_[0].max_taps() * taps_[1].max_taps() * taps_[2].max_taps() == 1) {
      make_product(pattern);
    } else {
      make_sums(pattern);
    }
    repeat_in_channels(pattern);
  }

 private:
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
        if (axis.max_taps() == 1) {
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

  // One entry along the first two axes, and one run along the last.
  void make_consecutive(RowPattern<index_t>& pattern, const TapRun& run1, const TapRun& run2, const TapRun& run3) {
    const auto& [axis1, axis2, axis3] = conv_.axes;
    const auto tap = [&](int axis, const TapRun& run) { return taps_[axis].terms(run)[0].kernel; };
    pattern.first_column = (run1.input * axis2.input + run2.input) * axis3.input + run3.input;
    pattern.first_tap = (tap(0, run1) * axis2.kernel + tap(1, run2)) * axis3.kernel + tap(2, run3);
    pattern.consecutive = run3.count;
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
  AxisEntries entries1_, entries2_, entries3_;
};

}  // namespace conv2affine
