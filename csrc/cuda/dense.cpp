#include "dense.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <torch/library.h>

#include "cuda/kernels.h"
#include "cuda/table.h"

namespace conv2affine {

namespace {

at::Tensor dense_cuda(const at::Tensor& weight, const MatrixRows& rows) {
  const int64_t cols = rows.conv.cols();
  const at::Tensor matrix = at::empty({rows.count(), cols}, weight.options());
  const UploadedTable table = upload(rows, weight.options());
  C10_CUDA_CHECK(launch_dense(dtype_of(weight.scalar_type()), table.rows, weight.const_data_ptr(),
                              matrix.mutable_data_ptr(), cols, rows.start, rows.stop, current_stream()));
  return matrix;
}

}  // namespace

TORCH_LIBRARY_IMPL(conv2affine, CUDA, m) { m.impl("dense", &dense<dense_cuda>); }

}  // namespace conv2affine
