// What may be added up where several taps meet in one entry.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <string_view>

#include "rows.h"

namespace conv2affine {

// To be called with the arguments of an operator before it adds up weights. Does nothing where no taps meet: then
// weights are copied, whatever they are. Else throws
//     NotImplementedError    unless the dtype is one that convolutions have
//     ValueError             where a sum of integers does not fit into their dtype, or where a sum of float16 may not
// A sum that is in range for the largest of the weights costs one pass over them; only others are computed to be seen.
void check_sums(const MatrixRows& rows, const at::Tensor& weight, at::IntArrayRef geometry,
                std::string_view padding_mode, bool transposed);

}  // namespace conv2affine
