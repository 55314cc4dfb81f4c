#include "cuda/kernels.h"
#include "cuda/row.h"

namespace conv2affine {

namespace {

template <typename scalar_t>
__global__ void dense_kernel(const __grid_constant__ RowTable table, const scalar_t* __restrict__ weight,
                             scalar_t* __restrict__ matrix, int64_t cols, int64_t row_start, int64_t row_stop) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  for (int64_t r = row_start + static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; r < row_stop; r += step) {
    scalar_t* to = matrix + (r - row_start) * cols;
    for_each_entry(table, Row::at(table, r), weight,
                   [=](int64_t, int64_t column, scalar_t value) { to[column] = value; });
  }
}

}  // namespace

cudaError_t launch_dense(Dtype dtype, const RowTable& table, const void* weight, void* matrix, int64_t cols,
                         int64_t row_start, int64_t row_stop, void* stream) {
  return dispatch(dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    const size_t bytes = static_cast<size_t>((row_stop - row_start) * cols) * sizeof(scalar_t);
    const cudaError_t error = cudaMemsetAsync(matrix, 0, bytes, static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) return error;
    const int64_t kernel = table.axis1.kernel * table.axis2.kernel * table.axis3.kernel;
    const dim3 threads = threads_for_row(table.in_per_group * kernel);
    return launch(dense_kernel<scalar_t>, blocks_for(row_stop - row_start, threads.y), threads, stream, table,
                  static_cast<const scalar_t*>(weight), static_cast<scalar_t*>(matrix), cols, row_start, row_stop);
  });
}

}  // namespace conv2affine
