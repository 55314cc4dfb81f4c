// A row of the matrix, and its entries; for .cu files only.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/row_table.h"
#include "cuda/scalar.h"
#include "interior.h"

namespace conv2affine {

// What an output coordinate reads along one axis: entries first, first + 1, ... of its table.
struct Part {
  int64_t shift, first, entries;

  __device__ Part(const AxisTable& axis, int64_t o) {
    const Place place = axis.interior.place(o);
    shift = place.shift;
    first = __ldg(axis.first_entry + place.pattern);
    entries = __ldg(axis.first_entry + place.pattern + 1) - first;
  }

  __device__ Counts counts(const AxisTable& axis, int64_t o) const {
    return {axis.interior.total_before(axis.first_entry, o), entries, axis.entries};
  }
};

// Row (co, o), taken apart.
struct Row {
  int64_t co, o1, o2, o3;
  Part part1, part2, part3;

  __device__ Row(const RowTable& table, int64_t co, int64_t o1, int64_t o2, int64_t o3)
      : co(co), o1(o1), o2(o2), o3(o3), part1(table.axis1, o1), part2(table.axis2, o2), part3(table.axis3, o3) {}

  __device__ static Row at(const RowTable& table, int64_t row) {
    const int64_t line = row / table.axis3.output, plane = line / table.axis2.output, co = plane / table.axis1.output;
    return Row(table, co, plane - co * table.axis1.output, line - plane * table.axis2.output,
               row - line * table.axis3.output);
  }

  __device__ int64_t entries(const RowTable& table) const {
    return table.in_per_group * part1.entries * part2.entries * part3.entries;
  }

  __device__ int64_t entries_before(const RowTable& table) const {
    return table.in_per_group * conv2affine::entries_before(co, part1.counts(table.axis1, o1),
                                                            part2.counts(table.axis2, o2),
                                                            part3.counts(table.axis3, o3));
  }
};

// Calls f(e, column, value) for the entries of a row, which the threads of a block with one threadIdx.y share:
// neighbours have neighbouring entries. `weight` is contiguous.
template <typename scalar_t, typename F>
__device__ void for_each_entry(const RowTable& table, const Row& row, const scalar_t* weight, const F& f) {
  const AxisTable &axis1 = table.axis1, &axis2 = table.axis2, &axis3 = table.axis3;
  const int64_t first_ci = row.co / table.out_per_group * table.in_per_group;
  const int64_t entries = row.entries(table);
  for (int64_t e = threadIdx.x; e < entries; e += blockDim.x) {
    const int64_t line = e / row.part3.entries, plane = line / row.part2.entries, ci = plane / row.part1.entries;
    const int64_t e1 = row.part1.first + plane - ci * row.part1.entries;
    const int64_t e2 = row.part2.first + line - plane * row.part2.entries;
    const int64_t e3 = row.part3.first + e - line * row.part3.entries;
    const int64_t i1 = row.part1.shift + __ldg(axis1.input_of + e1);
    const int64_t i2 = row.part2.shift + __ldg(axis2.input_of + e2);
    const int64_t i3 = row.part3.shift + __ldg(axis3.input_of + e3);
    const scalar_t* from = weight + (row.co * table.in_per_group + ci) * axis1.kernel * axis2.kernel * axis3.kernel;
    // Nearly always one tap an axis. The first one is stored, not added to zero: then -0.0 and NaN payloads survive.
    scalar_t sum{};
    bool first = true;
    const int64_t end1 = __ldg(axis1.first_tap + e1 + 1), end2 = __ldg(axis2.first_tap + e2 + 1),
                  end3 = __ldg(axis3.first_tap + e3 + 1);
    for (int64_t t1 = __ldg(axis1.first_tap + e1); t1 < end1; ++t1) {
      for (int64_t t2 = __ldg(axis2.first_tap + e2); t2 < end2; ++t2) {
        for (int64_t t3 = __ldg(axis3.first_tap + e3); t3 < end3; ++t3) {
          const int64_t k = (__ldg(axis1.kernel_of + t1) * axis2.kernel + __ldg(axis2.kernel_of + t2)) * axis3.kernel +
                            __ldg(axis3.kernel_of + t3);
          sum = first ? from[k] : add(sum, from[k]);
          first = false;
        }
      }
    }
    f(e, (((first_ci + ci) * axis1.input + i1) * axis2.input + i2) * axis3.input + i3, sum);
  }
}

// A block's shape: so many threads share a row as it has entries, at most all of them.
inline dim3 threads_for_row(int64_t entries) {
  unsigned x = 1;
  while (x < kThreads && x < entries) x *= 2;
  return dim3(x, kThreads / x);
}

}  // namespace conv2affine
