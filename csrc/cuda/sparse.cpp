#include "sparse.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "cuda/kernels.h"
#include "cuda/table.h"

namespace conv2affine {

namespace {

at::Tensor empty_cuda(at::IntArrayRef sizes, const at::TensorOptions& options) { return at::empty(sizes, options); }

void sparse_cuda(const at::Tensor& weight, const MatrixRows& rows, const SparseArrays& to) {
  const c10::cuda::CUDAGuard guard(weight.device());
  const UploadedTable table = upload(rows, weight.options());
  AT_DISPATCH_INDEX_TYPES(to.col.defined() ? to.col.scalar_type() : at::kLong, "conv2affine::sparse", [&] {
    const auto indices = [](const at::Tensor& array) -> index_t* {
      return array.defined() ? array.mutable_data_ptr<index_t>() : nullptr;
    };
    const SparsePointers<index_t> pointers{
        indices(to.crow), indices(to.row), indices(to.col), to.values.mutable_data_ptr(), rows.nnz_before(rows.start),
        to.values.numel()};
    C10_CUDA_CHECK(launch_sparse(dtype_of(weight.scalar_type()), table.rows, weight.const_data_ptr(), pointers,
                                 rows.start, rows.stop, current_stream()));
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(conv2affine, CUDA, m) {
  m.impl("csr", &csr<empty_cuda, sparse_cuda>);
  m.impl("coo", &coo<empty_cuda, sparse_cuda>);
  m.impl("values", &values<empty_cuda, sparse_cuda>);
}

}  // namespace conv2affine
