#pragma once
#include <c10/core/Device.h>

namespace c10::cuda {

struct CUDAGuard {
  explicit CUDAGuard(c10::Device) {}  // the real one takes none but CUDA devices
};

}  // namespace c10::cuda
