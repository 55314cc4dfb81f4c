// The operator `bias`: the bias of the linear layer, from that of the convolution.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "convolution.h"
#include "storage.h"

namespace conv2affine {

// What a backend implements: bias is contiguous, all arguments checked.
using BiasKernel = at::Tensor(const at::Tensor& bias, int64_t outputs);

// bias is (channels), any stride, and `outputs` the number of output positions, at least 1. Returns (channels *
// outputs), contiguous, dtype and device of bias, in new memory:
//
//     b[(co, o)] = bias[co]
template <BiasKernel* kernel>
at::Tensor bias(const at::Tensor& bias, int64_t outputs) {
  TORCH_CHECK_VALUE(bias.dim() == 1, "bias must have shape (channels), got ", bias.sizes());
  TORCH_CHECK_VALUE(outputs >= 1, "outputs (", outputs, ") must be >= 1");
  checked_product({bias.numel(), outputs, static_cast<int64_t>(bias.element_size())}, "bytes of the bias");
  check_storage("bias", bias);
  return kernel(bias.contiguous(), outputs);
}

}  // namespace conv2affine
