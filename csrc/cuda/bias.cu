#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace conv2affine {

namespace {

template <typename scalar_t>
__global__ void bias_kernel(const scalar_t* __restrict__ bias, scalar_t* __restrict__ to, int64_t outputs,
                            int64_t rows) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; r < rows; r += step) {
    to[r] = bias[r / outputs];
  }
}

}  // namespace

cudaError_t launch_bias(Dtype dtype, const void* bias, void* to, int64_t outputs, int64_t rows, void* stream) {
  return dispatch(dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    return launch(bias_kernel<scalar_t>, blocks_for(rows, kThreads), dim3(kThreads), stream,
                  static_cast<const scalar_t*>(bias), static_cast<scalar_t*>(to), outputs, rows);
  });
}

}  // namespace conv2affine
