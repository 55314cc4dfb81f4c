#include <cstring>

#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace conv2affine {

namespace {

// With the other arguments this stays below the 4 KiB that every driver takes. It holds the tables of most layers.
struct Chunk {
  int64_t numbers[500];
};

__global__ void upload_kernel(const __grid_constant__ Chunk chunk, int64_t* to, int64_t count) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n < count) to[n] = chunk.numbers[n];
}

}  // namespace

cudaError_t launch_upload(const int64_t* from, int64_t* to, int64_t count, void* stream) {
  constexpr int64_t max_numbers = sizeof(Chunk) / sizeof(int64_t);
  for (int64_t done = 0; done < count; done += max_numbers) {
    const int64_t numbers = count - done < max_numbers ? count - done : max_numbers;
    Chunk chunk;
    memcpy(chunk.numbers, from + done, static_cast<size_t>(numbers) * sizeof(int64_t));
    const cudaError_t error =
        launch(upload_kernel, blocks_for(numbers, kThreads), dim3(kThreads), stream, chunk, to + done, numbers);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace conv2affine
