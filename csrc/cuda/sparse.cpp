#include "sparse.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "convolution.h"
#include "cuda/kernels.h"
#include "cuda/table.h"

namespace conv2affine {

namespace {

// The checked arguments of an operator.
struct Checked {
  Sides sides;
  Dtype dtype;
  int64_t before, nnz;
};

Checked check(const char* op, const at::Tensor& weight, at::IntArrayRef geometry, std::string_view rule,
              int64_t row_start, int64_t row_stop, bool transpose) {
  const Sides sides = make_sides(check_convolution(weight, geometry, rule), transpose);
  check_rows(row_start, row_stop, sides.conv.rows());
  const int64_t before = entries_before(sides.conv, sides.taps, row_start);
  const int64_t nnz = entries_before(sides.conv, sides.taps, row_stop) - before;
  return {sides, dtype_of(weight.scalar_type(), op), before, nnz};
}

// Fills the parts, and returns the values. The device of weight must be the current one.
template <typename index_t>
at::Tensor fill(const Checked& c, const at::Tensor& weight, bool transpose, index_t* crow, index_t* row, index_t* col,
                int64_t row_start, int64_t row_stop) {
  // (groups, out/group, in/group, K_1, ..., K_D), out and in being those of the transposed matrix
  const at::Tensor weights = (transpose ? weight.transpose(1, 2) : weight).contiguous();
  const at::Tensor values = at::empty({c.nnz}, weight.options());
  const UploadedTable table = upload(c.sides.conv, c.sides.taps, weight.options());
  const SparseParts<index_t> to{crow, row, col, values.mutable_data_ptr(), c.before, c.nnz};
  C10_CUDA_CHECK(
      launch_sparse(c.dtype, table.rows, weights.const_data_ptr(), to, row_start, row_stop, current_stream()));
  return values;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> csr_cuda(const at::Tensor& weight, at::IntArrayRef geometry,
                                                        std::string_view rule, int64_t row_start, int64_t row_stop,
                                                        at::ScalarType index_dtype, bool transpose) {
  const Checked c = check("csr", weight, geometry, rule, row_start, row_stop, transpose);
  check_index_dtype(index_dtype, c.nnz, row_stop - row_start, c.sides.conv.cols());
  const c10::cuda::CUDAGuard guard(weight.device());
  const at::TensorOptions indices = weight.options().dtype(index_dtype);
  const at::Tensor crow = at::empty({row_stop - row_start + 1}, indices), col = at::empty({c.nnz}, indices);
  const at::Tensor values = AT_DISPATCH_INDEX_TYPES(index_dtype, "conv2affine::csr", [&] {
    return fill<index_t>(c, weight, transpose, crow.mutable_data_ptr<index_t>(), nullptr,
                         col.mutable_data_ptr<index_t>(), row_start, row_stop);
  });
  return {crow, col, values};
}

std::tuple<at::Tensor, at::Tensor> coo_cuda(const at::Tensor& weight, at::IntArrayRef geometry, std::string_view rule,
                                            int64_t row_start, int64_t row_stop) {
  const Checked c = check("coo", weight, geometry, rule, row_start, row_stop, /*transpose=*/false);
  const c10::cuda::CUDAGuard guard(weight.device());
  const at::Tensor indices = at::empty({2, c.nnz}, weight.options().dtype(at::kLong));
  int64_t* rows = indices.mutable_data_ptr<int64_t>();
  const at::Tensor values =
      fill<int64_t>(c, weight, /*transpose=*/false, nullptr, rows, rows + c.nnz, row_start, row_stop);
  return {indices, values};
}

at::Tensor values_cuda(const at::Tensor& weight, at::IntArrayRef geometry, std::string_view rule, int64_t row_start,
                       int64_t row_stop, bool transpose) {
  const Checked c = check("values", weight, geometry, rule, row_start, row_stop, transpose);
  const c10::cuda::CUDAGuard guard(weight.device());
  return fill<int64_t>(c, weight, transpose, nullptr, nullptr, nullptr, row_start, row_stop);
}

}  // namespace

TORCH_LIBRARY_IMPL(conv2affine, CUDA, m) {
  m.impl("csr", static_cast<Csr*>(&csr_cuda));
  m.impl("coo", static_cast<Coo*>(&coo_cuda));
  m.impl("values", static_cast<Values*>(&values_cuda));
}

}  // namespace conv2affine
