#include "cuda/kernels.h"
#include "cuda/row.h"

namespace conv2affine {

namespace {

template <typename scalar_t, typename index_t>
__global__ void sparse_kernel(const __grid_constant__ RowTable table, const scalar_t* __restrict__ weight,
                              SparsePointers<index_t> to, int64_t row_start, int64_t row_stop) {
  if (to.crow && blockIdx.x + threadIdx.x + threadIdx.y == 0) {
    to.crow[row_stop - row_start] = static_cast<index_t>(to.nnz);
  }
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  for (int64_t r = row_start + static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; r < row_stop; r += step) {
    const Row row = Row::at(table, r);
    const int64_t first = row.nnz_before(table) - to.before;
    if (to.crow && threadIdx.x == 0) to.crow[r - row_start] = static_cast<index_t>(first);
    scalar_t* values = static_cast<scalar_t*>(to.values);
    for_each_entry(table, row, weight, [=](int64_t e, int64_t column, scalar_t value) {
      if (to.row) to.row[first + e] = static_cast<index_t>(r - row_start);
      if (to.col) to.col[first + e] = static_cast<index_t>(column);
      values[first + e] = value;
    });
  }
}

template <typename index_t>
cudaError_t launch_sparse_kernel(Dtype dtype, const RowTable& table, const void* weight, SparsePointers<index_t> to,
                                 int64_t row_start, int64_t row_stop, void* stream) {
  return dispatch(dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    const int64_t kernel = table.axis1.kernel * table.axis2.kernel * table.axis3.kernel;
    const dim3 threads = threads_for_row(table.in_per_group * kernel);
    return launch(sparse_kernel<scalar_t, index_t>, blocks_for(row_stop - row_start, threads.y), threads, stream, table,
                  static_cast<const scalar_t*>(weight), to, row_start, row_stop);
  });
}

}  // namespace

cudaError_t launch_sparse(Dtype dtype, const RowTable& table, const void* weight, SparsePointers<int32_t> to,
                          int64_t row_start, int64_t row_stop, void* stream) {
  return launch_sparse_kernel(dtype, table, weight, to, row_start, row_stop, stream);
}

cudaError_t launch_sparse(Dtype dtype, const RowTable& table, const void* weight, SparsePointers<int64_t> to,
                          int64_t row_start, int64_t row_stop, void* stream) {
  return launch_sparse_kernel(dtype, table, weight, to, row_start, row_stop, stream);
}

}  // namespace conv2affine
