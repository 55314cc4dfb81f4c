// The operator `dense`: the matrix of a convolution with all its elements.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <string_view>

#include "rows.h"
#include "storage.h"
#include "sums.h"

namespace conv2affine {

// What a backend implements: rows of the matrix of a weight that is contiguous, all arguments checked.
using DenseKernel = at::Tensor(const at::Tensor& weight, const MatrixRows& rows);

// Returns (row_stop - row_start, cols), contiguous, dtype and device of weight: rows [row_start, row_stop) of
//
//     A[(co, o), (ci, i)] = sum over taps k with tap(o, k) == i of  weight[g, co, ci, k]
//
// where taps add up in ascending order of k. The result is new memory. Arguments as in convolution.h, `weight` being
// (groups, out/group, in/group, K_1, ..., K_D), any strides.
template <DenseKernel* kernel>
at::Tensor dense(const at::Tensor& weight, at::IntArrayRef geometry, std::string_view padding_mode, bool transposed,
                 int64_t row_start, int64_t row_stop) {
  const MatrixRows rows = check_rows(weight.sizes(), geometry, padding_mode, transposed, row_start, row_stop);
  checked_product({rows.count(), rows.conv.cols(), static_cast<int64_t>(weight.element_size())},
                  "bytes of the dense matrix");
  check_storage("weight", weight);
  check_sums(rows, weight, geometry, padding_mode, transposed);
  return kernel(weight_of_rows(weight, rows), rows);
}

}  // namespace conv2affine
