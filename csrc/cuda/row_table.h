// Axis taps as plain arrays, for Note [Rows] of cpu/row_pattern.h on the device.
#pragma once

#include <cstdint>

#include "regions.h"

namespace conv2affine {

// One axis; the arrays are in device memory.
//
//     pattern p has the runs         runs[first_run[p]] ... runs[first_run[p + 1] - 1]
//     and the entries                before[p + 1] - before[p] of them
//     a run has the terms            terms[run.first_term] ... terms[(next run).first_term - 1]
//
// After the last run there is an empty one, for its first_term.
struct AxisTable {
  Regions regions;
  int64_t input, output, kernel;  // sizes
  int64_t nnz;                    // of all output coordinates
  const int64_t *before, *first_run;
  const TapRun* runs;
  const TapTerm* terms;
};

// The rows of a matrix. A kernel gets it by value.
struct RowTable {
  int64_t out_per_group, in_per_group;
  AxisTable axis1, axis2, axis3;
};

}  // namespace conv2affine
