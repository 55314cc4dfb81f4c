#include "adjoint.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>

#include "convolution.h"
#include "cuda/kernels.h"
#include "cuda/table.h"

namespace conv2affine {

namespace {

// As many threads as large devices run at once. Fixed, so that the order of a sum depends on sizes alone.
constexpr int64_t kThreadsWanted = int64_t{1} << 18;

AdjointShape shape_of(const Convolution& conv, int64_t row_start, int64_t row_stop) {
  AdjointShape shape{conv.groups,  conv.out_per_group, conv.in_per_group, conv.axes[0], conv.axes[1],
                     conv.axes[2], row_start,          row_stop,          /*slices=*/1};
  shape.slices = std::clamp<int64_t>(kThreadsWanted / shape.weights(), 1, conv.outputs());
  return shape;
}

at::Tensor empty_partial(const AdjointShape& shape, const at::TensorOptions& options) {
  const at::ScalarType dtype = c10::typeMetaToScalarType(options.dtype());
  const bool half = dtype == at::kHalf || dtype == at::kBFloat16;
  return at::empty({shape.slices, shape.weights()}, options.dtype(half ? at::kFloat : dtype));
}

// Sums over the slices in an order of PyTorch's, which does not change from run to run either.
at::Tensor to_weight(const at::Tensor& partial, at::IntArrayRef weight_size, at::ScalarType dtype) {
  return at::sum(partial, {0}, /*keepdim=*/false, partial.scalar_type()).to(dtype).view(weight_size);
}

at::Tensor dense_adjoint_cuda(const at::Tensor& matrix, at::IntArrayRef weight_size, at::IntArrayRef geometry,
                              std::string_view rule, int64_t row_start, int64_t row_stop) {
  const Convolution conv = check_convolution(weight_size, geometry, rule);
  check_rows(row_start, row_stop, conv.rows());
  TORCH_CHECK_VALUE(matrix.dim() == 2 && matrix.size(0) == row_stop - row_start && matrix.size(1) == conv.cols(),
                    "matrix must have shape (", row_stop - row_start, ", ", conv.cols(), "), got ", matrix.sizes());
  const Dtype dtype = dtype_of(matrix.scalar_type(), "dense_adjoint");
  const c10::cuda::CUDAGuard guard(matrix.device());
  const at::Tensor resolved = matrix.resolve_conj().resolve_neg();
  const AdjointShape shape = shape_of(conv, row_start, row_stop);
  const at::Tensor partial = empty_partial(shape, matrix.options());
  C10_CUDA_CHECK(launch_dense_adjoint(dtype, shape, {resolved.const_data_ptr(), resolved.stride(0), resolved.stride(1)},
                                      partial.mutable_data_ptr(), current_stream()));
  return to_weight(partial, weight_size, matrix.scalar_type());
}

at::Tensor sparse_adjoint_cuda(const at::Tensor& values, at::IntArrayRef weight_size, at::IntArrayRef geometry,
                               std::string_view rule, int64_t row_start, int64_t row_stop, bool transpose) {
  const Convolution conv = check_convolution(weight_size, geometry, rule);
  const Sides sides = make_sides(conv, transpose);
  check_rows(row_start, row_stop, sides.conv.rows());
  const int64_t before = entries_before(sides.conv, sides.taps, row_start);
  const int64_t nnz = entries_before(sides.conv, sides.taps, row_stop) - before;
  TORCH_CHECK_VALUE(values.dim() == 1 && values.size(0) == nnz, "values must have shape (", nnz, "), got ",
                    values.sizes());
  const Dtype dtype = dtype_of(values.scalar_type(), "sparse_adjoint");
  const c10::cuda::CUDAGuard guard(values.device());
  const at::Tensor resolved = values.resolve_conj().resolve_neg().contiguous();
  const UploadedTable table = upload(sides.conv, sides.taps, values.options());
  const AdjointShape shape = shape_of(conv, row_start, row_stop);
  const at::Tensor partial = empty_partial(shape, values.options());
  C10_CUDA_CHECK(launch_sparse_adjoint(dtype, shape, {table.rows, resolved.const_data_ptr(), before}, transpose,
                                       partial.mutable_data_ptr(), current_stream()));
  return to_weight(partial, weight_size, values.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(conv2affine, CUDA, m) {
  m.impl("dense_adjoint", static_cast<DenseAdjoint*>(&dense_adjoint_cuda));
  m.impl("sparse_adjoint", static_cast<SparseAdjoint*>(&sparse_adjoint_cuda));
}

}  // namespace conv2affine
