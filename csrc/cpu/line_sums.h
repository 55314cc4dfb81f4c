// Sums over the rows of a sparse matrix: from its values, as they lie, to weights.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "convolution.h"
#include "cpu/row_sums.h"
#include "rows.h"

namespace conv2affine {

// Note [Lines]
//
// The rows of one output line (those that differ in the last output coordinate alone) lie one behind the other, and the
// lines that have the same patterns along the other axes, one kind, have the same entries. So whole lines are added up,
// entry by entry, in one long loop that knows nothing of rows:
//
//     sums  =  left margin | interior | right margin          the entries of a line
//
// Only when all lines of an output channel are in, the sums of each row go to the weights of its pattern. Where lines
// are too long for that or too few, their interior is added up by blocks of some rows:
//
//     sums  =  left margin | block of the interior | right margin
//
// Without margins, the rows of one line follow those of the line before: then blocks go on through all lines of a kind.
//
// Where there are too many kinds to keep sums for, as with a kernel as large as the input, hardly two rows have the
// same pattern: then each row goes to its weights by itself.

// Every thread has one of its own, for one output channel after the other.
template <typename acc_t>
class LineSums {
 public:
  LineSums(const Convolution& conv, const Taps& taps) : conv_(conv), taps_(taps), rows_(conv, taps) {
    const int64_t kinds = taps[0].patterns() * taps[1].patterns();
    int64_t entries = kinds * kAligned;  // at the least
    if (entries <= kKeptEntries) entries = make_kinds();
    if (entries > kKeptEntries) kinds_.clear();
    if (!kinds_.empty()) sums_.reset(new CacheLine[entries / kAligned]);
  }

  // Adds the values of the rows from `at` on, as many of them as one call takes, at most `most`; moves `values` behind
  // them and returns the number of rows. `weights` are those of at.co.
  template <typename scalar_t>
  int64_t add(const Position& at, int64_t most, const scalar_t*& values, acc_t* weights) {
    const int64_t pattern1 = taps_[0][at.o1].pattern, pattern2 = taps_[1][at.o2].pattern;
    const int64_t outputs = conv_.axes[2].output, rows = std::min(most, outputs - at.o3);
    if (kinds_.empty()) {
      for (int64_t o3 = at.o3; o3 < at.o3 + rows; ++o3) {
        values += rows_.add(pattern1, pattern2, taps_[2][o3].pattern, values, weights);
      }
      return rows;
    }
    Kind& kind = kinds_[pattern1 * taps_[1].patterns() + pattern2];
    acc_t* sums = sums_of(kind);
    if (!kind.is_open) {
      kind.is_open = true;
      std::fill_n(sums, kind.size(), acc_t(0));
    }
    if (kind.is_uniform) {
      const int64_t of_lines = std::min(most, taps_[1].run(at.o2) * outputs - at.o3), entries = of_lines * kind.turn;
      add_rows(sums, values, kind.block, entries / kind.block);
      add_rows(sums, values + entries / kind.block * kind.block, entries % kind.block, 1);
      values += entries;
      return of_lines;
    }
    if (kind.is_flat() && rows == outputs) {
      const int64_t lines = std::min(most / outputs, taps_[1].run(at.o2));
      add_rows(sums, values, kind.entries, lines);
      values += lines * kind.entries;
      return lines * outputs;
    }
    int64_t entry = kind.scale * taps_[2].entries_before(at.o3);
    const int64_t stop = kind.scale * taps_[2].entries_before(at.o3 + rows);
    const auto add_part = [&](int64_t place, int64_t entries, int64_t times = 1) {
      add_rows(sums + place, values, entries, times);
      values += times * entries;
      entry += times * entries;
    };
    if (entry < kind.left) add_part(entry, std::min(stop, kind.left) - entry);
    if (const int64_t inside = std::min(stop, kind.right) - entry; inside > 0) {
      const int64_t begun = entry == kind.left ? 0 : (entry - kind.left) % kind.block;
      const int64_t rest = begun == 0 ? 0 : std::min(inside, kind.block - begun);
      const int64_t blocks = (inside - rest) / kind.block, last = (inside - rest) % kind.block;
      if (rest > 0) add_part(kind.inner() + begun, rest);
      if (blocks > 0) add_part(kind.inner(), kind.block, blocks);
      if (last > 0) add_part(kind.inner(), last);
    }
    if (entry < stop) add_part(kind.behind() + entry - kind.right, stop - entry);
    return rows;
  }

  // Adds to the weights what has come in, and begins anew.
  void close(acc_t* weights) {
    const int64_t begin = taps_[2].interior().begin, end = begin + taps_[2].interior().patterns;
    for (Kind& kind : kinds_) {
      if (!kind.is_open) continue;
      kind.is_open = false;
      acc_t* sums = sums_of(kind);
      const auto rows_to_weights = [&](const acc_t* row, int64_t first, int64_t last) {
        for (int64_t pattern3 = first; pattern3 < last; ++pattern3) {
          row += rows_.add(kind.pattern1, kind.pattern2, pattern3, row, weights);
        }
      };
      rows_to_weights(sums, 0, begin);
      // The block repeats: its second half is added to the first one until one turn is left.
      acc_t* block = sums + kind.inner();
      for (int64_t entries = kind.block; entries > kind.turn;) {
        const int64_t turns = (entries + kind.turn - 1) / kind.turn, kept = (turns + 1) / 2 * kind.turn;
        add_rows(block, block + kept, entries - kept, 1);
        entries = kept;
      }
      rows_to_weights(block, begin, end);
      rows_to_weights(sums + kind.behind(), end, taps_[2].patterns());
    }
  }

 private:
  // Sums that are added to again after so many entries stay in the first-level cache, whatever else passes through it.
  static constexpr int64_t kBlockEntries = 256;
  static constexpr int64_t kKeptEntries = 1 << 18;
  // The sums of a block begin with a cache line, so that hardly any vector lies across two.
  static constexpr int64_t kAligned = 64 / sizeof(acc_t);
  struct alignas(64) CacheLine {
    acc_t entries[kAligned];
  };

  // The lines that have these patterns along the leading axes; what follows is in entries.
  struct Kind {
    int64_t pattern1, pattern2;
    int64_t scale;                 // for each entry along the last axis
    int64_t left, right, entries;  // of a line: its interior is [left, right)
    int64_t turn, block;           // that the interior repeats after, and that its sums are kept for
    bool is_uniform = false;       // a turn is a row, and all rows are alike
    int64_t sums = 0;              // where they begin
    bool is_open = false;

    bool is_flat() const { return block == right - left; }
    int64_t inner() const { return is_flat() ? left : aligned(left); }
    int64_t behind() const { return inner() + (is_flat() ? block : aligned(block)); }
    int64_t size() const { return aligned(behind() + entries - right); }
  };

  acc_t* sums_of(const Kind& kind) const { return reinterpret_cast<acc_t*>(sums_.get()) + kind.sums; }

  static int64_t aligned(int64_t entries) { return (entries + kAligned - 1) / kAligned * kAligned; }

  // All of them; returns how many sums they have.
  int64_t make_kinds() {
    int64_t entries = 0;
    kinds_.reserve(taps_[0].patterns() * taps_[1].patterns());
    for (int64_t pattern1 = 0; pattern1 < taps_[0].patterns(); ++pattern1) {
      for (int64_t pattern2 = 0; pattern2 < taps_[1].patterns(); ++pattern2) {
        kinds_.push_back(make_kind(pattern1, pattern2));
        kinds_.back().sums = entries;
        entries += kinds_.back().size();
      }
    }
    return entries;
  }

  Kind make_kind(int64_t pattern1, int64_t pattern2) const {
    const auto& [axis1, axis2, axis3] = taps_;
    const Interior& interior = axis3.interior();
    const int64_t scale = conv_.in_per_group * axis1.entries_of(pattern1) * axis2.entries_of(pattern2);
    const int64_t left = scale * axis3.entries_before(interior.begin);
    const int64_t right = scale * axis3.entries_before(interior.end);
    const int64_t turn = scale * axis3.entries_before(interior.begin + interior.patterns) - left;
    Kind kind{pattern1, pattern2, scale, left, right, scale * axis3.entries(), turn, right - left};
    kind.is_uniform = turn > 0 && axis3.run(0) == conv_.axes[2].output;
    const int64_t lines = axis1.interior().count(pattern1) * axis2.interior().count(pattern2);
    // What is kept is also cleared and added to the weights. Measured: over 30 lines it pays, over 15 it does not.
    const bool pays = !kind.is_uniform && lines >= 20 && kind.entries <= kLineEntries;
    if (!pays && kind.block > kBlockEntries) kind.block = std::max<int64_t>(1, kBlockEntries / turn) * turn;
    return kind;
  }

  const Convolution& conv_;
  const Taps& taps_;
  RowSums rows_;
  std::vector<Kind> kinds_;  // empty where there are too many
  std::unique_ptr<CacheLine[]> sums_;
};

}  // namespace conv2affine
