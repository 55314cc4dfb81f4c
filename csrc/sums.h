// What may be added up where several taps meet in one entry.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <string_view>

#include "rows.h"

namespace conv2affine {

// Call before summing weights, with the arguments of the operator. Does nothing where no taps meet: then weights are
// copied, whatever they are. Else throws
//     NotImplementedError    unless the dtype is one that convolutions have
//     ValueError             where a sum of integers does not fit into their dtype, or where a sum of float16 may not
// Where the largest of the weights rules out an overflow, this costs one pass over them; otherwise sums are computed.
void check_sums(const MatrixRows& rows, const at::Tensor& weight, at::IntArrayRef geometry,
                std::string_view padding_mode, bool transposed);

}  // namespace conv2affine
