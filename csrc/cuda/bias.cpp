#include "bias.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <torch/library.h>

#include "cuda/kernels.h"
#include "cuda/table.h"

namespace conv2affine {

namespace {

at::Tensor bias_cuda(const at::Tensor& bias, int64_t outputs) {
  const at::Tensor result = at::empty({bias.numel() * outputs}, bias.options());
  C10_CUDA_CHECK(launch_bias(dtype_of(bias.scalar_type()), bias.const_data_ptr(), result.mutable_data_ptr(), outputs,
                             result.numel(), current_stream()));
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(conv2affine, CUDA, m) { m.impl("bias", &bias<bias_cuda>); }

}  // namespace conv2affine
