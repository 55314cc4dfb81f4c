// CUDA on the host, as much of it as csrc/cuda uses: its files compile unmodified with g++, and run on CPU tensors.
//
// Threads run one after the other, in the order that the environment variable CONV2AFFINE_EMULATION_ORDER names
// (forward, backward or shuffled), and launches keep to the limits of a device. What this cannot show: races, 32-bit
// registers, alignment of vector accesses, and what nvcc makes of the code.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __grid_constant__

using cudaStream_t = struct CUstream_st*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

template <typename T>
T __ldg(const T* from) {
  return *from;
}

// Large memory is given back to the system, which hands out zeroed pages: an untouched matrix takes no memory.
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  constexpr uintptr_t page = 4096;
  char* const begin = static_cast<char*>(to);
  char* const end = begin + bytes;
  char* const first = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page);
  char* const last = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(end) / page * page);
  if (value != 0 || bytes < (size_t{1} << 28) || madvise(first, last - first, MADV_DONTNEED) != 0) {
    if (bytes > 0) std::memset(to, value, bytes);
    return cudaSuccess;
  }
  std::memset(begin, 0, first - begin);
  std::memset(last, 0, end - last);
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "arguments are copied to the device byte by byte");
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "older drivers take no more than 4 KiB of arguments");
  const dim3 grid = config->gridDim, block = config->blockDim;
  const int64_t threads = int64_t{block.x} * block.y * block.z, blocks = int64_t{grid.x} * grid.y * grid.z;
  if (threads < 1 || threads > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64 || blocks < 1 ||
      grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff || config->dynamicSmemBytes > 48 * 1024) {
    return cudaErrorInvalidConfiguration;
  }
  const char* variable = std::getenv("CONV2AFFINE_EMULATION_ORDER");
  const std::string_view order = variable ? variable : "forward";
  const int64_t count = threads * blocks;
  gridDim = grid;
  blockDim = block;
  // Steps of a prime larger than any count here visit each number once.
  const int64_t step = order == "shuffled" ? 4611686018427387847 % count : 1;
  for (int64_t turn = 0, next = 0; turn < count; ++turn, next = (next + step) % count) {
    const int64_t n = order == "backward" ? count - 1 - next : next;
    const int64_t thread = n % threads, b = n / threads;
    threadIdx = dim3(static_cast<unsigned>(thread % block.x), static_cast<unsigned>(thread / block.x % block.y),
                     static_cast<unsigned>(thread / block.x / block.y));
    blockIdx = dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                    static_cast<unsigned>(b / grid.x / grid.y));
    kernel(arguments...);
  }
  return cudaSuccess;
}
