// The arithmetic of Note [Patterns] and Note [Rows]: what an axis repeats, and how many entries lie before a row.
// No torch and no containers in here: the CPU and the CUDA kernels share this file.
#pragma once

#include <cstdint>

#include "axis.h"

namespace conv2affine {

// Where in the table an output coordinate is: it reads input coordinate `shift + tap.input` through `tap.kernel`, for
// each of the taps of its pattern.
struct Place {
  int64_t pattern;
  int64_t shift;
};

// The output coordinates [begin, end) of an axis; they have `patterns` patterns in turn, behind those of the left
// margin.
struct Interior {
  int64_t begin;
  int64_t end;
  int64_t period = 1;  // the interior repeats after `period` output coordinates,
  int64_t step = 0;    // moved by `step` input coordinates
  int64_t patterns = 0;

  // o must lie on the axis.
  CONV2AFFINE_HOST_DEVICE Place place(int64_t o) const {
    if (o < begin) return {o, 0};
    if (o >= end) return {o - end + begin + patterns, 0};
    const int64_t inside = o - begin;
    // The usual period is 1, and a division takes as long as all the rest.
    const int64_t turn = period == 1 ? inside : inside / period;
    return {begin + inside - turn * period, turn * step};
  }

  // How many output coordinates have a pattern, at the most.
  CONV2AFFINE_HOST_DEVICE int64_t count(int64_t pattern) const {
    const bool inside = begin <= pattern && pattern < begin + patterns;
    return inside ? (end - begin + patterns - 1) / patterns : 1;
  }

  // What the output coordinates before o have, where pattern p has `before[p + 1] - before[p]`.
  CONV2AFFINE_HOST_DEVICE int64_t total_before(const int64_t* before, int64_t o) const {
    const int64_t* interior = before + begin;
    const int64_t* right = interior + patterns;
    const int64_t left = o < begin ? o : begin, behind = o < end ? 0 : o - end;
    const int64_t inside = (o < end ? o : end) - left;
    const int64_t turn = period == 1 ? inside : inside / period;
    const int64_t turns = turn * (*right - *interior), begun = interior[inside - turn * period] - *interior;
    return before[left] + turns + begun + (right[behind] - *right);
  }
};

// Entries along one axis: of the output coordinates before o, of o, and of all.
struct Counts {
  int64_t before, at, all;
};

// Entries of the matrix before row (co, o), for each input channel of a group.
CONV2AFFINE_HOST_DEVICE inline int64_t entries_before(int64_t co, const Counts& axis1, const Counts& axis2,
                                                      const Counts& axis3) {
  const int64_t line = axis1.at * axis2.at * axis3.before;
  const int64_t plane = axis1.at * axis2.before * axis3.all;
  return (co * axis1.all + axis1.before) * axis2.all * axis3.all + plane + line;
}

}  // namespace conv2affine
