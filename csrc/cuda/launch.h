// Launching kernels, and the threads of a launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace conv2affine {

constexpr unsigned kThreads = 256;     // of a block
constexpr int64_t kMaxBlocks = 65535;  // far more than any device runs at once; kernels loop over the rest

// Blocks for `count` items of work, `each` of them to a block; at least one.
inline unsigned blocks_for(int64_t count, int64_t each) {
  const int64_t blocks = count / each + (count % each != 0);
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

// cudaLaunchKernelEx and not <<<>>>: then this is C++ for any compiler, and runs in tests without a GPU.
template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), unsigned blocks, dim3 threads, void* stream,
                   Parameters... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = threads;
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace conv2affine
