#include "dense.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "convolution.h"
#include "cuda/kernels.h"
#include "cuda/table.h"

namespace conv2affine {

namespace {

at::Tensor dense_cuda(const at::Tensor& weight, at::IntArrayRef geometry, std::string_view rule, int64_t row_start,
                      int64_t row_stop) {
  const Convolution conv = check_convolution(weight, geometry, rule);
  check_rows(row_start, row_stop, conv.rows());
  const int64_t rows = row_stop - row_start, itemsize = static_cast<int64_t>(weight.element_size());
  checked_product({rows, conv.cols(), itemsize}, "bytes of the dense matrix");
  const Dtype dtype = dtype_of(weight.scalar_type(), "dense");
  const c10::cuda::CUDAGuard guard(weight.device());
  const at::Tensor weights = weight.contiguous();  // (groups, out/group, in/group, K_1, ..., K_D)
  const at::Tensor matrix = at::empty({rows, conv.cols()}, weight.options());
  const UploadedTable table = upload(conv, make_taps(conv), weight.options());
  C10_CUDA_CHECK(launch_dense(dtype, table.rows, weights.const_data_ptr(), matrix.mutable_data_ptr(), conv.cols(),
                              row_start, row_stop, current_stream()));
  return matrix;
}

}  // namespace

TORCH_LIBRARY_IMPL(conv2affine, CUDA, m) { m.impl("dense", static_cast<Dense*>(&dense_cuda)); }

}  // namespace conv2affine
