// Axis taps as plain arrays, for Note [Rows] of rows.h on the device.
#pragma once

#include <cstdint>

#include "interior.h"

namespace conv2affine {

// One axis. Its entries are numbered through all patterns, and so are its taps; the arrays are in device memory.
//
//     pattern p has the entries      first_entry[p] ... first_entry[p + 1] - 1, ascending in input coordinate
//     entry e reads input            shift + input_of[e], shift being that of the Place
//     through the kernel taps        kernel_of[first_tap[e]] ... kernel_of[first_tap[e + 1] - 1], ascending
struct AxisTable {
  Interior interior;
  int64_t input, output, kernel;  // sizes
  int64_t entries;                // of all output coordinates
  const int64_t *first_entry, *input_of, *first_tap, *kernel_of;
};

// The rows of a matrix. A kernel gets it by value.
struct RowTable {
  int64_t out_per_group, in_per_group;
  AxisTable axis1, axis2, axis3;
};

}  // namespace conv2affine
