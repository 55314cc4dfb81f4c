#include "adjoint.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <c10/cuda/CUDAException.h>
#include <torch/library.h>

#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/table.h"

namespace conv2affine {

namespace {

// As many threads as large devices run at once. Fixed, so that the order of a sum depends on sizes alone.
constexpr int64_t kThreadsWanted = int64_t{1} << 18;

AdjointShape shape_of(const MatrixRows& rows) {
  const Convolution conv = rows.by_columns ? rows.conv.transposed() : rows.conv;
  AdjointShape shape{conv.groups,  conv.out_per_group, conv.in_per_group, conv.axes[0], conv.axes[1],
                     conv.axes[2], rows.start,         rows.stop,         /*slices=*/1};
  shape.slices = std::clamp<int64_t>(kThreadsWanted / shape.weights(), 1, conv.outputs());
  return shape;
}

at::Tensor empty_partial(const AdjointShape& shape, const at::TensorOptions& options) {
  const at::ScalarType dtype = c10::typeMetaToScalarType(options.dtype());
  const bool half = dtype == at::kHalf || dtype == at::kBFloat16;
  checked_product({shape.slices, shape.weights(), 16}, "bytes of the sums");
  return at::empty({shape.slices, shape.weights()}, options.dtype(half ? at::kFloat : dtype));
}

// Sums over the slices in an order of PyTorch's, which does not change from run to run either.
at::Tensor to_weight(const at::Tensor& partial, at::ScalarType dtype) {
  return at::sum(partial, {0}, /*keepdim=*/false, partial.scalar_type()).to(dtype);
}

at::Tensor dense_adjoint_cuda(const at::Tensor& matrix, const MatrixRows& rows) {
  const Dtype dtype = float_dtype_of(matrix.scalar_type(), "dense_adjoint");
  const AdjointShape shape = shape_of(rows);
  const at::Tensor partial = empty_partial(shape, matrix.options());
  C10_CUDA_CHECK(launch_dense_adjoint(dtype, shape, {matrix.const_data_ptr(), matrix.stride(0), matrix.stride(1)},
                                      partial.mutable_data_ptr(), current_stream()));
  return to_weight(partial, matrix.scalar_type());
}

at::Tensor sparse_adjoint_cuda(const at::Tensor& values, const MatrixRows& rows) {
  const Dtype dtype = float_dtype_of(values.scalar_type(), "sparse_adjoint");
  const UploadedTable table = upload(rows, values.options());
  const AdjointShape shape = shape_of(rows);
  const at::Tensor partial = empty_partial(shape, values.options());
  C10_CUDA_CHECK(launch_sparse_adjoint(dtype, shape, {table.rows, values.const_data_ptr(), rows.nnz_before(rows.start)},
                                       rows.by_columns, partial.mutable_data_ptr(), current_stream()));
  return to_weight(partial, values.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(conv2affine, CUDA, m) {
  m.impl("dense_adjoint", &dense_adjoint<dense_adjoint_cuda>);
  m.impl("sparse_adjoint", &sparse_adjoint<sparse_adjoint_cuda>);
}

}  // namespace conv2affine
