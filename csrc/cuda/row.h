// A row of the matrix, and its entries; for .cu files only.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/row_table.h"
#include "cuda/scalar.h"
#include "regions.h"

namespace conv2affine {

// What an output coordinate reads along one axis.
struct Reads {
  int64_t offset, first_run, nnz;

  __device__ Reads(const AxisTable& axis, int64_t o) {
    const Place place = axis.regions.place(o);
    offset = place.offset;
    first_run = __ldg(axis.first_run + place.pattern);
    nnz = __ldg(axis.before + place.pattern + 1) - __ldg(axis.before + place.pattern);
  }

  __device__ Counts counts(const AxisTable& axis, int64_t o) const {
    return {axis.regions.total_before(axis.before, o), nnz, axis.nnz};
  }
};

// Entry number e of what is read: entry n of a run.
struct ReadEntry {
  const TapRun* run;
  int64_t n;

  __device__ ReadEntry(const AxisTable& axis, const Reads& reads, int64_t e) : run(axis.runs + reads.first_run), n(e) {
    for (; n >= __ldg(&run->count); ++run) n -= __ldg(&run->count);
  }

  __device__ int64_t input(const Reads& reads) const {
    return reads.offset + __ldg(&run->input) + n * __ldg(&run->step);
  }
};

// Calls f(k) for each tap of an entry, in ascending order.
template <typename F>
__device__ void for_each_tap(const AxisTable& axis, const ReadEntry& entry, const F& f) {
  const TapTerm* const end = axis.terms + __ldg(&entry.run[1].first_term);
  for (const TapTerm* term = axis.terms + __ldg(&entry.run->first_term); term < end; ++term) {
    const int64_t first = __ldg(&term->kernel) + entry.n * __ldg(&term->step), taps = __ldg(&term->taps);
    for (int64_t k = first; k < first + taps; ++k) f(k);
  }
}

// Row (co, o), and what it reads along each axis.
struct Row {
  int64_t co, o1, o2, o3;
  Reads reads1, reads2, reads3;

  __device__ Row(const RowTable& table, int64_t co, int64_t o1, int64_t o2, int64_t o3)
      : co(co), o1(o1), o2(o2), o3(o3), reads1(table.axis1, o1), reads2(table.axis2, o2), reads3(table.axis3, o3) {}

  __device__ static Row at(const RowTable& table, int64_t row) {
    const int64_t line = row / table.axis3.output, plane = line / table.axis2.output, co = plane / table.axis1.output;
    return Row(table, co, plane - co * table.axis1.output, line - plane * table.axis2.output,
               row - line * table.axis3.output);
  }

  __device__ int64_t nnz(const RowTable& table) const {
    return table.in_per_group * reads1.nnz * reads2.nnz * reads3.nnz;
  }

  __device__ int64_t nnz_before(const RowTable& table) const {
    return table.in_per_group * conv2affine::nnz_before(co, reads1.counts(table.axis1, o1),
                                                        reads2.counts(table.axis2, o2), reads3.counts(table.axis3, o3));
  }
};

// Calls f(e, column, value) for the entries of a row, which the threads of a block with one threadIdx.y share:
// neighbours have neighbouring entries. `weight` is contiguous.
template <typename scalar_t, typename F>
__device__ void for_each_entry(const RowTable& table, const Row& row, const scalar_t* weight, const F& f) {
  const AxisTable &axis1 = table.axis1, &axis2 = table.axis2, &axis3 = table.axis3;
  const int64_t first_ci = row.co / table.out_per_group * table.in_per_group;
  const int64_t nnz = row.nnz(table);
  for (int64_t e = threadIdx.x; e < nnz; e += blockDim.x) {
    const int64_t line = e / row.reads3.nnz, plane = line / row.reads2.nnz, ci = plane / row.reads1.nnz;
    const ReadEntry entry1(axis1, row.reads1, plane - ci * row.reads1.nnz);
    const ReadEntry entry2(axis2, row.reads2, line - plane * row.reads2.nnz);
    const ReadEntry entry3(axis3, row.reads3, e - line * row.reads3.nnz);
    const scalar_t* from = weight + (row.co * table.in_per_group + ci) * axis1.kernel * axis2.kernel * axis3.kernel;
    // Nearly always one tap per axis. The first one is stored, not added to zero: then -0.0 and NaN payloads survive.
    scalar_t sum{};
    bool first = true;
    for_each_tap(axis1, entry1, [&](int64_t k1) {
      for_each_tap(axis2, entry2, [&](int64_t k2) {
        for_each_tap(axis3, entry3, [&](int64_t k3) {
          const scalar_t value = from[(k1 * axis2.kernel + k2) * axis3.kernel + k3];
          sum = first ? value : add(sum, value);
          first = false;
        });
      });
    });
    const int64_t i1 = entry1.input(row.reads1), i2 = entry2.input(row.reads2), i3 = entry3.input(row.reads3);
    f(e, (((first_ci + ci) * axis1.input + i1) * axis2.input + i2) * axis3.input + i3, sum);
  }
}

// The shape of a block: blockDim.x is the nnz of a row rounded up to a power of two, capped at kThreads.
inline dim3 threads_for_row(int64_t nnz) {
  unsigned x = 1;
  while (x < kThreads && x < nnz) x *= 2;
  return dim3(x, kThreads / x);
}

}  // namespace conv2affine
