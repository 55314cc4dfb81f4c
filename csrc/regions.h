// The arithmetic of Note [Patterns], Note [Tap runs] and Note [Rows]: which pattern an output coordinate has, what a
// pattern consists of, and how many entries lie before a row. No torch and no containers in here: the CPU and the CUDA
// kernels share this file.
#pragma once

#include <cstdint>

#include "axis.h"

namespace conv2affine {

// Where in the table an output coordinate is: it reads what `pattern` reads, shifted by `offset` input coordinates.
struct Place {
  int64_t pattern;
  int64_t offset;
};

// The output coordinates of an axis by what they read. Patterns are numbered in this order.
//
//     [0, begin)       left border: a pattern each. The first `saturated_left` coordinates lie beyond the reach of the
//                      kernel, and share the pattern of the next one.
//     [begin, end)     interior: `patterns` patterns in turn, shifted by `step` input coordinates each `period`
//     [end, output)    right border: a pattern each. The coordinates after `saturated_right` share its pattern.
struct Regions {
  int64_t begin;
  int64_t end;
  int64_t period = 1;
  int64_t step = 0;
  int64_t patterns = 0;
  int64_t saturated_left = 0;
  int64_t saturated_right = INT64_MAX;

  // Patterns to the left of the interior.
  CONV2AFFINE_HOST_DEVICE int64_t left() const { return begin - saturated_left; }

  // o must lie on the axis.
  CONV2AFFINE_HOST_DEVICE Place place(int64_t o) const {
    if (o < begin) return {o < saturated_left ? 0 : o - saturated_left, 0};
    if (o >= end) return {left() + patterns + (o < saturated_right ? o : saturated_right) - end, 0};
    const int64_t inside = o - begin;
    // The usual period is 1, and a division takes as long as all the rest.
    const int64_t n = period == 1 ? inside : inside / period;  // period index
    return {left() + inside - n * period, n * step};
  }

  // Sum over the output coordinates before o, where pattern p counts `before[p + 1] - before[p]`.
  CONV2AFFINE_HOST_DEVICE int64_t total_before(const int64_t* before, int64_t o) const {
    int64_t total = 0;
    if (saturated_left > 0) total += (o < saturated_left ? o : saturated_left) * before[1];
    if (o <= saturated_left) return total;
    total += before[(o < begin ? o : begin) - saturated_left];
    if (o <= begin) return total;
    const int64_t* interior = before + left();
    const int64_t* right = interior + patterns;
    const int64_t inside = (o < end ? o : end) - begin;
    const int64_t n = period == 1 ? inside : inside / period;  // period index
    total += n * (*right - *interior) + interior[inside - n * period] - *interior;
    if (o <= end) return total;
    total += right[(o < saturated_right ? o : saturated_right) - end] - *right;
    if (o <= saturated_right) return total;
    const int64_t* last = right + (saturated_right - end);
    return total + (o - saturated_right) * (last[1] - last[0]);
  }
};

// Of a positive denominator.
int64_t ceil_div(int64_t numerator, int64_t denominator);

// Input coordinates, or outputs of a transposed convolution, between the first and the last tap.
int64_t reach(const Axis& axis);

// The regions of an axis' output.
Regions regions_of(const Axis& axis);

// Those of the transposed table of an axis whose padding is folded, from those of its transposed convolution.
Regions folded_regions(const Axis& axis, Regions regions);

// Entries of a pattern, in ascending order of the input coordinate: entry n reads input + n * step.
struct TapRun {
  int64_t input, step, count;
  int64_t first_term;  // its terms are those from here to the first one of the next run
};

// Kernel taps of each entry of a run: entry n has kernel + n * step, and the `taps - 1` that follow it.
struct TapTerm {
  int64_t kernel, step, taps;
};

// Entries along one axis: of the output coordinates before o, of o, and of all.
struct Counts {
  int64_t before, at, all;
};

// Entries of the matrix before row (co, o), for each input channel of a group.
CONV2AFFINE_HOST_DEVICE inline int64_t nnz_before(int64_t co, const Counts& axis1, const Counts& axis2,
                                                  const Counts& axis3) {
  const int64_t line = axis1.at * axis2.at * axis3.before;
  const int64_t plane = axis1.at * axis2.before * axis3.all;
  return (co * axis1.all + axis1.before) * axis2.all * axis3.all + plane + line;
}

}  // namespace conv2affine
