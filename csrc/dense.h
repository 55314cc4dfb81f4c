// The operator `dense`: the matrix of a convolution as a strided tensor.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <string_view>

namespace conv2affine {

// What a backend implements. Arguments as check_convolution() in convolution.h has them.
// Returns (row_stop - row_start, cols), contiguous, dtype and device of weight: rows [row_start, row_stop) of
//
//     A[(co, o), (ci, i)] = sum over taps k with tap(o, k) == i of  weight[g, co, ci, k]
//
// where taps add up in ascending order of k. The result is new memory.
using Dense = at::Tensor(const at::Tensor& weight, at::IntArrayRef geometry, std::string_view rule, int64_t row_start,
                         int64_t row_stop);

}  // namespace conv2affine
