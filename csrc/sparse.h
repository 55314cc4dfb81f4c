// The operators `csr`, `coo` and `values`: the matrix of a convolution without its zeros.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <string_view>
#include <tuple>

namespace conv2affine {

// All hold the entries that a weight goes to, even if it is 0, in order of rows and then of columns, each once: where
// taps overlap, an entry is their sum in ascending order of k. Of rows [row_start, row_stop) of the matrix; see dense.h
// for it and convolution.h for the other arguments. All results are new memory, contiguous, on the device of weight.

// Returns (crow, col, values): the entries of row r are those from crow[r - row_start] to crow[r - row_start + 1].
// crow (rows + 1) and col (nnz) are of `index_dtype`, int32 or int64; values (nnz) of weight's dtype.
// `transpose`: of the transposed matrix, whose rows are input elements; this is the matrix by columns, CSC.
// Throws ValueError where int32 cannot count the entries, the rows or the columns.
using Csr = std::tuple<at::Tensor, at::Tensor, at::Tensor>(const at::Tensor& weight, at::IntArrayRef geometry,
                                                           std::string_view rule, int64_t row_start, int64_t row_stop,
                                                           at::ScalarType index_dtype, bool transpose);

// Returns (indices, values): indices (2, nnz), int64, holds the row, counted from row_start, and the column.
using Coo = std::tuple<at::Tensor, at::Tensor>(const at::Tensor& weight, at::IntArrayRef geometry,
                                               std::string_view rule, int64_t row_start, int64_t row_stop);

// Returns values (nnz), the same as those of csr: what is left to compute where the pattern is known, as in
// derivatives.
using Values = at::Tensor(const at::Tensor& weight, at::IntArrayRef geometry, std::string_view rule, int64_t row_start,
                          int64_t row_stop, bool transpose);

}  // namespace conv2affine
