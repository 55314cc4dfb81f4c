// The operators `dense_adjoint` and `sparse_adjoint`: from a matrix back to weights.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <string_view>

namespace conv2affine {

// Both return a tensor of shape `weight_size`, which is (groups, out/group, in/group, K_1, ..., K_D), contiguous, in
// new memory, dtype and device of the first argument:
//
//     W[g, co, ci, k] = sum over the entries (co, o), (ci, i) with tap(o, k) == i of  M[(co, o), (ci, i)]
//
// over rows [row_start, row_stop). As linear maps they are the transposes of `dense` and `values` (for complex numbers
// too: nothing is conjugated). Each weight sums in an order that does not depend on the number of threads; half types
// are summed in float32 and rounded once.

// matrix is (row_stop - row_start, cols), any strides.
using DenseAdjoint = at::Tensor(const at::Tensor& matrix, at::IntArrayRef weight_size, at::IntArrayRef geometry,
                                std::string_view rule, int64_t row_start, int64_t row_stop);

// values is (nnz), in the order of `csr` with the same `transpose`.
using SparseAdjoint = at::Tensor(const at::Tensor& values, at::IntArrayRef weight_size, at::IntArrayRef geometry,
                                 std::string_view rule, int64_t row_start, int64_t row_stop, bool transpose);

}  // namespace conv2affine
