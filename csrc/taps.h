// Axis taps: for each output coordinate, what it reads, sorted by input coordinate.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "axis.h"
#include "interior.h"

namespace conv2affine {

// Note [Patterns]
//
// Away from the borders every output coordinate reads the same taps, moved along; only the margins differ. With
// input 6, kernel 3, padding 1, stride 1 (a row an output coordinate, the tap that reads each input coordinate):
//
//            i = 0 1 2 3 4 5
//     o = 0      1 2 . . . .    pattern 0   left margin
//     o = 1      0 1 2 . . .    pattern 1   interior, shift 0
//     o = 2      . 0 1 2 . .    pattern 1   interior, shift 1
//     o = 3      . . 0 1 2 .    pattern 1   interior, shift 2
//     o = 4      . . . 0 1 2    pattern 1   interior, shift 3
//     o = 5      . . . . 0 1    pattern 2   right margin
//
// So the table holds one pattern for each coordinate of the margins and one for the whole interior, however long the
// axis. A transposed convolution repeats with period `stride` instead of 1: then the interior has `stride` patterns.
// The table depends on kernel, stride and padding; the length of the axis costs nothing.

struct Tap {
  int64_t input;   // input coordinate, before the shift
  int64_t kernel;  // kernel tap that reads it
};

class AxisTaps {
 public:
  explicit AxisTaps(const Axis& axis);

  // The pairs of an axis from the other side: for each of its input coordinates, the output coordinates that read it,
  // as taps of (output, kernel).
  static AxisTaps transposed(const Axis& axis);

  // o must lie in [0, axis.output).
  Place operator[](int64_t o) const { return interior_.place(o); }

  // How many output coordinates from o on have its pattern, each moved by step() more than the one before.
  int64_t run(int64_t o) const {
    return interior_.patterns == 1 && interior_.begin <= o && o < interior_.end ? interior_.end - o : 1;
  }
  int64_t step() const { return interior_.step; }
  const Interior& interior() const { return interior_; }

  // In ascending order of (input, kernel).
  std::span<const Tap> taps(int64_t pattern) const {
    return {taps_.data() + start_[pattern], taps_.data() + start_[pattern + 1]};
  }

  int64_t patterns() const { return start_.size() - 1; }

  // Whether some output coordinate reads one input coordinate through two taps, so that their weights add up.
  bool overlaps() const { return overlaps_; }

  // Number of input coordinates that an output coordinate with this pattern reads through at least one tap.
  int64_t entries_of(int64_t pattern) const { return entries_[pattern + 1] - entries_[pattern]; }

  // The largest of them; in a transposed table, more than the kernel has taps where margins fold back.
  int64_t most_entries() const { return most_entries_; }

  // The same of output coordinate o.
  int64_t entries_at(int64_t o) const { return entries_before(o + 1) - entries_before(o); }

  // The same, summed over the output coordinates before o, which must lie in [0, axis.output].
  int64_t entries_before(int64_t o) const { return interior_.total_before(entries_.data(), o); }

  // The same, summed over all output coordinates.
  int64_t entries() const { return entries_before(output_); }

 private:
  // reads(o, taps) appends what output coordinate o reads, in any order.
  template <typename Reads>
  AxisTaps(int64_t output, int64_t kernel, const Interior& interior, const Reads& reads);

  // Makes a pattern of the taps that were added since the last one.
  void close_pattern();

  int64_t output_;
  Interior interior_;
  bool overlaps_ = false;
  int64_t most_entries_ = 0;
  std::vector<Tap> taps_;
  std::vector<int64_t> start_;    // taps of pattern p: [start[p], start[p + 1])
  std::vector<int64_t> entries_;  // input coordinates that the patterns before p read, each once
};

}  // namespace conv2affine
