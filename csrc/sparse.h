// The operators `csr`, `coo` and `values`: the matrix of a convolution without its zeros.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <string_view>
#include <tuple>

#include "rows.h"
#include "storage.h"
#include "sums.h"

namespace conv2affine {

// All hold the entries that a weight goes to, even if it is 0, in order of rows and then of columns, each once: where
// taps overlap, an entry is their sum in ascending order of k. Of rows [row_start, row_stop) of the matrix; see dense.h
// for it and for the other arguments. All results are new memory, contiguous, on the device of weight.

// The arrays of a sparse matrix; undefined ones are not written. A CSR matrix has `crow`, a COO matrix the `row` of
// each entry.
struct SparseArrays {
  at::Tensor crow, row, col, values;
};

// What a backend implements: memory that is written from end to end, and the arrays of the matrix of a weight that is
// contiguous, all arguments checked.
using SparseMemory = at::Tensor(at::IntArrayRef sizes, const at::TensorOptions& options);
using SparseKernel = void(const at::Tensor& weight, const MatrixRows& rows, const SparseArrays& to);

// Returns (crow, col, values): the entries of row r are those from crow[r - row_start] to crow[r - row_start + 1].
// crow (rows + 1) and col (nnz) are of `index_dtype`, int32 or int64; values (nnz) of weight's dtype.
// by_columns: of the transposed matrix, whose rows are input elements; this is the matrix by columns, CSC.
// Throws ValueError where int32 cannot count the entries, the rows or the columns.
template <SparseMemory* memory, SparseKernel* kernel>
std::tuple<at::Tensor, at::Tensor, at::Tensor> csr(const at::Tensor& weight, at::IntArrayRef geometry,
                                                   std::string_view padding_mode, bool transposed, int64_t row_start,
                                                   int64_t row_stop, bool by_columns, at::ScalarType index_dtype) {
  const MatrixRows rows =
      check_rows(weight.sizes(), geometry, padding_mode, transposed, row_start, row_stop, by_columns);
  const int64_t nnz = rows.nnz();
  check_bytes(rows, nnz, static_cast<int64_t>(weight.element_size()));
  check_index_dtype(index_dtype, nnz, rows.count(), rows.conv.cols());
  check_storage("weight", weight);
  check_sums(rows, weight, geometry, padding_mode, transposed);
  const at::TensorOptions indices = weight.options().dtype(index_dtype);
  const SparseArrays to{
      memory({rows.count() + 1}, indices), {}, memory({nnz}, indices), memory({nnz}, weight.options())};
  kernel(weight_of_rows(weight, rows), rows, to);
  return {to.crow, to.col, to.values};
}

// Returns (indices, values): indices (2, nnz), int64, holds the row, counted from row_start, and the column.
template <SparseMemory* memory, SparseKernel* kernel>
std::tuple<at::Tensor, at::Tensor> coo(const at::Tensor& weight, at::IntArrayRef geometry,
                                       std::string_view padding_mode, bool transposed, int64_t row_start,
                                       int64_t row_stop) {
  const MatrixRows rows = check_rows(weight.sizes(), geometry, padding_mode, transposed, row_start, row_stop);
  const int64_t nnz = rows.nnz();
  check_bytes(rows, nnz, static_cast<int64_t>(weight.element_size()));
  check_storage("weight", weight);
  check_sums(rows, weight, geometry, padding_mode, transposed);
  const at::Tensor indices = memory({2, nnz}, weight.options().dtype(at::kLong));
  const SparseArrays to{{}, indices[0], indices[1], memory({nnz}, weight.options())};
  kernel(weight_of_rows(weight, rows), rows, to);
  return {indices, to.values};
}

// Returns values (nnz), the same as those of csr: what is left to compute where the pattern is known, as in
// derivatives.
template <SparseMemory* memory, SparseKernel* kernel>
at::Tensor values(const at::Tensor& weight, at::IntArrayRef geometry, std::string_view padding_mode, bool transposed,
                  int64_t row_start, int64_t row_stop, bool by_columns) {
  const MatrixRows rows =
      check_rows(weight.sizes(), geometry, padding_mode, transposed, row_start, row_stop, by_columns);
  const int64_t nnz = rows.nnz();
  check_bytes(rows, nnz, static_cast<int64_t>(weight.element_size()));
  check_storage("weight", weight);
  check_sums(rows, weight, geometry, padding_mode, transposed);
  const SparseArrays to{{}, {}, {}, memory({nnz}, weight.options())};
  kernel(weight_of_rows(weight, rows), rows, to);
  return to.values;
}

using Values = decltype(values<nullptr, nullptr>);

}  // namespace conv2affine
