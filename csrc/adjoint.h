// The operators `dense_adjoint` and `sparse_adjoint`: from a matrix back to weights.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <string_view>

#include "rows.h"
#include "storage.h"

namespace conv2affine {

// Both return a tensor of shape `weight_size`, which is (groups, out/group, in/group, K_1, ..., K_D), contiguous, in
// new memory, dtype and device of the first argument:
//
//     W[g, co, ci, k] = sum over the entries (co, o), (ci, i) with tap(o, k) == i of  M[(co, o), (ci, i)]
//
// over rows [row_start, row_stop). As linear maps they are the transposes of `dense` and `values` (for complex numbers
// too: nothing is conjugated). Each weight sums in an order that does not depend on the number of threads; half types
// are summed in float32 and rounded once. Integers are refused with NotImplementedError: their sums wrap around.

// What a backend implements, all arguments checked. The results have the elements of the weight in its order, in any
// shape.
using DenseAdjointKernel = at::Tensor(const at::Tensor& matrix, const MatrixRows& rows);
using SparseAdjointKernel = at::Tensor(const at::Tensor& values, const MatrixRows& rows);  // values are contiguous

// matrix is (row_stop - row_start, cols), any strides.
template <DenseAdjointKernel* kernel>
at::Tensor dense_adjoint(const at::Tensor& matrix, at::IntArrayRef weight_size, at::IntArrayRef geometry,
                         std::string_view padding_mode, bool transposed, int64_t row_start, int64_t row_stop) {
  const MatrixRows rows = check_rows(weight_size, geometry, padding_mode, transposed, row_start, row_stop);
  TORCH_CHECK_VALUE(matrix.dim() == 2 && matrix.size(0) == rows.count() && matrix.size(1) == rows.conv.cols(),
                    "matrix must have shape (", rows.count(), ", ", rows.conv.cols(), "), got ", matrix.sizes());
  check_weight_bytes(weight_size, static_cast<int64_t>(matrix.element_size()));
  check_storage("matrix", matrix);
  return kernel(matrix.resolve_conj().resolve_neg(), rows).view(weight_size);
}

// values is (nnz), in the order of `csr` with the same `by_columns`.
template <SparseAdjointKernel* kernel>
at::Tensor sparse_adjoint(const at::Tensor& values, at::IntArrayRef weight_size, at::IntArrayRef geometry,
                          std::string_view padding_mode, bool transposed, int64_t row_start, int64_t row_stop,
                          bool by_columns) {
  const MatrixRows rows = check_rows(weight_size, geometry, padding_mode, transposed, row_start, row_stop, by_columns);
  const int64_t nnz = rows.nnz();
  TORCH_CHECK_VALUE(values.dim() == 1 && values.size(0) == nnz, "values must have shape (", nnz, "), got ",
                    values.sizes());
  check_weight_bytes(weight_size, static_cast<int64_t>(values.element_size()));
  check_storage("values", values);
  return kernel(values.resolve_conj().resolve_neg().contiguous(), rows).view(weight_size);
}

}  // namespace conv2affine
