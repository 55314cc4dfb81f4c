#include "adjoint.h"

#include <ATen/Dispatch_v2.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "cpu/interruptible.h"
#include "cpu/multiversioned.h"
#include "cpu/row_walker.h"
#include "no_memory.h"

namespace conv2affine {

namespace {

// sums[e] += entry e of each row; the rows are contiguous.
template <typename acc_t, typename scalar_t>
[[gnu::always_inline]] inline void add_rows_inline(acc_t* __restrict sums, const scalar_t* __restrict row, int64_t nnz,
                                                   int64_t rows) {
  constexpr int64_t kCacheLine = 64 / sizeof(scalar_t), kAhead = 8192 / sizeof(scalar_t);
  for (; rows > 0; --rows, row += nnz) {
    int64_t e = 0;
    for (; e + kCacheLine <= nnz; e += kCacheLine) {
      // Pending additions fill the reorder buffer. Measured: without this, up to half as long again.
      __builtin_prefetch(row + e + kAhead);
#pragma omp simd
      for (int64_t i = e; i < e + kCacheLine; ++i) sums[i] += static_cast<acc_t>(row[i]);
    }
    for (; e < nnz; ++e) sums[e] += static_cast<acc_t>(row[e]);
  }
}

template <typename acc_t, typename scalar_t>
void add_rows(acc_t* sums, const scalar_t* row, int64_t nnz, int64_t rows) {
  add_rows_inline(sums, row, nnz, rows);
}

CONV2AFFINE_MULTIVERSIONED void add_rows(float* sums, const float* row, int64_t nnz, int64_t rows) {
  add_rows_inline(sums, row, nnz, rows);
}

CONV2AFFINE_MULTIVERSIONED void add_rows(double* sums, const double* row, int64_t nnz, int64_t rows) {
  add_rows_inline(sums, row, nnz, rows);
}

// A dense matrix from one row on.
template <typename scalar_t>
struct DenseSource {
  const scalar_t* row;
  int64_t row_stride, column_stride;

  // Adds the next rows, `count` of one output channel, to its weights. `sums` is working memory.
  template <typename acc_t>
  void add(RowWalker<int64_t>& walker, std::vector<acc_t>& sums, acc_t* weights, int64_t count) {
    while (count > 0) {
      const RowRun run = walker.next(count);
      sums.assign(run.pattern.size(), acc_t(0));
      acc_t* const sum = sums.data();
      const int64_t read = run.pattern.size() == 0 ? 0 : run.rows;  // rows without entries may be many
      for (int64_t n = 0; n < read; ++n) {
        const scalar_t* from = row + n * row_stride + (run.offset + n * run.step) * column_stride;
        run.pattern.for_each_column([=, stride = column_stride](int64_t e, int64_t column) {
          sum[e] += static_cast<acc_t>(from[column * stride]);
        });
      }
      run.pattern.add(sums.data(), weights);
      row += run.rows * row_stride;
      count -= run.rows;
    }
  }
};

// The values of a sparse matrix from one row on.
template <typename scalar_t>
struct SparseSource {
  const scalar_t* values;

  // The same. Repetitions along a line are summed first, in loops long enough for vector instructions, then added to
  // the weights.
  template <typename acc_t>
  void add(RowWalker<int64_t>& walker, std::vector<acc_t>& sums, acc_t* weights, int64_t count) {
    constexpr int64_t kBlockEntries = 256;
    while (count > 0) {
      const auto [rows, nnz, times] = walker.repeats(count);
      int64_t repeats = std::clamp<int64_t>(kBlockEntries / std::max<int64_t>(1, nnz), 1, times);
      const int64_t rest = times % repeats * nnz;
      sums.assign(repeats * nnz, acc_t(0));
      add_rows(sums.data(), values, repeats * nnz, times / repeats);
      add_rows(sums.data(), values + times * nnz - rest, rest, 1);
      for (; repeats > 1; repeats = (repeats + 1) / 2) {  // adds the second half to the first
        const int64_t kept = (repeats + 1) / 2 * nnz;
        add_rows(sums.data(), sums.data() + kept, repeats * nnz - kept, 1);
      }
      const acc_t* entries = sums.data();
      for (int64_t r = 0; r < rows; ++r) {
        const RowRun run = walker.next(1);
        run.pattern.add(entries, weights);
        entries += run.pattern.size();
      }
      walker.skip((times - 1) * rows);
      values += times * nnz;
      count -= times * rows;
    }
  }
};

// First rows of the slices, which are summed separately and then in order. The slices of an output channel follow from
// the sizes alone, so that the sum does not depend on the number of threads. Only few and long channels are divided.
std::vector<int64_t> slices_of(const MatrixRows& rows) {
  constexpr int64_t kSlices = 32;
  const int64_t channels = rows.conv.groups * rows.conv.out_per_group, outputs = rows.conv.outputs();
  const int64_t max_slices = std::clamp<int64_t>(rows.nnz_before(outputs) / kGrainEntries, 1, outputs);
  const int64_t slices = std::min((kSlices + channels - 1) / channels, max_slices);
  std::vector<int64_t> starts;
  starts.reserve((rows.count() / outputs + 2) * slices + 1);
  starts.push_back(rows.start);
  for (int64_t co = rows.start / outputs; co * outputs < rows.stop; ++co) {
    for (int64_t slice = 0; slice < slices; ++slice) {
      const int64_t start = co * outputs + outputs / slices * slice;
      if (start > rows.start && start < rows.stop) starts.push_back(start);
    }
  }
  if (rows.start < rows.stop) starts.push_back(rows.stop);
  return starts;
}

// source_at(row) is the source from that row on.
template <typename scalar_t, typename SourceAt>
at::Tensor adjoint(const MatrixRows& rows, const at::TensorOptions& options, const SourceAt& source_at) {
  using acc_t = at::opmath_type<scalar_t>;  // half types are summed in float32
  const Convolution& conv = rows.conv;
  const int64_t kernel = conv.in_per_group * conv.taps(), channels = conv.groups * conv.out_per_group;
  const std::vector<int64_t> starts = with_no_memory([&] { return slices_of(rows); });
  const int64_t slices = starts.size() - 1;
  checked_product({slices, kernel, static_cast<int64_t>(sizeof(acc_t))}, "bytes of the sums");
  const at::Tensor partial = at::zeros({slices, kernel}, options.dtype(c10::CppTypeToScalarType<acc_t>::value));
  acc_t* const partial_sums = partial.mutable_data_ptr<acc_t>();
  const int64_t rows_of_a_slice = slices == 0 ? 1 : (rows.count() + slices - 1) / slices;
  const int64_t entries = std::min(rows_of_a_slice, INT64_MAX / kernel) * kernel;
  interruptible_for(0, slices, entries, [&](int64_t first, int64_t last) {
    RowWalker<int64_t> walker(rows, starts[first]);
    auto source = source_at(starts[first]);
    std::vector<acc_t> sums;
    for (int64_t slice = first; slice < last; ++slice) {
      source.add(walker, sums, partial_sums + slice * kernel, starts[slice + 1] - starts[slice]);
    }
  });
  at::Tensor weight = partial;
  if (slices != channels || rows.count() != conv.rows()) {  // otherwise, a slice is a channel
    weight = at::zeros({channels, kernel}, partial.options());
    for (int64_t slice = 0; slice < slices; ++slice) {
      const int64_t co = starts[slice] / conv.outputs();
      add_rows(weight.mutable_data_ptr<acc_t>() + co * kernel, partial_sums + slice * kernel, kernel, 1);
    }
  }
  weight = weight.to(c10::CppTypeToScalarType<scalar_t>::value);
  if (!rows.by_columns) return weight;
  return weight.view({conv.groups, conv.out_per_group, conv.in_per_group, conv.taps()}).transpose(1, 2).contiguous();
}

at::Tensor dense_adjoint_cpu(const at::Tensor& matrix, const MatrixRows& rows) {
  at::Tensor weight;
  AT_DISPATCH_V2(matrix.scalar_type(), "conv2affine::dense_adjoint", AT_WRAP([&] {
                   const scalar_t* from = matrix.const_data_ptr<scalar_t>();
                   const int64_t row_stride = matrix.stride(0), column_stride = matrix.stride(1);
                   weight = adjoint<scalar_t>(rows, matrix.options(), [&](int64_t row) {
                     return DenseSource<scalar_t>{from + (row - rows.start) * row_stride, row_stride, column_stride};
                   });
                 }),
                 AT_EXPAND(AT_FLOATING_TYPES), AT_EXPAND(AT_COMPLEX_TYPES), at::kHalf, at::kBFloat16);
  return weight;
}

at::Tensor sparse_adjoint_cpu(const at::Tensor& values, const MatrixRows& rows) {
  at::Tensor weight;
  const int64_t before = rows.nnz_before(rows.start);
  AT_DISPATCH_V2(values.scalar_type(), "conv2affine::sparse_adjoint", AT_WRAP([&] {
                   const scalar_t* from = values.const_data_ptr<scalar_t>();
                   weight = adjoint<scalar_t>(rows, values.options(), [&](int64_t row) {
                     return SparseSource<scalar_t>{from + rows.nnz_before(row) - before};
                   });
                 }),
                 AT_EXPAND(AT_FLOATING_TYPES), AT_EXPAND(AT_COMPLEX_TYPES), at::kHalf, at::kBFloat16);
  return weight;
}

}  // namespace

TORCH_LIBRARY_IMPL(conv2affine, CPU, m) {
  m.impl("dense_adjoint", &dense_adjoint<dense_adjoint_cpu>);
  m.impl("sparse_adjoint", &sparse_adjoint<sparse_adjoint_cpu>);
}

}  // namespace conv2affine
