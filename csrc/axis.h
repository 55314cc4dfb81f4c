// One spatial axis of a convolution, and the definition of the whole library: tap().
// No torch in here: the CPU and the CUDA kernels share this file.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define CONV2AFFINE_HOST_DEVICE __host__ __device__
#else
#define CONV2AFFINE_HOST_DEVICE
#endif

namespace conv2affine {

enum class PaddingMode { zeros, circular, reflect, replicate };

// All sizes are at least 1, padding (the left one) at least 0; the right padding shows in `output`.
// The check that makes an Axis also guarantees that nothing below overflows 64 bits.
struct Axis {
  int64_t input;
  int64_t output;
  int64_t kernel;
  int64_t stride;
  int64_t padding;
  int64_t dilation;
  PaddingMode padding_mode;
  bool transposed;  // then padding_mode is zeros
};

// Coordinate `i` of the padded axis, folded back into [0, input) as F.pad fills its borders; -1 where it pads zeros.
// F.pad folds at most once on each side, and so does the check that makes an Axis.
CONV2AFFINE_HOST_DEVICE inline int64_t fold(const Axis& axis, int64_t i) {
  if (0 <= i && i < axis.input) return i;
  switch (axis.padding_mode) {
    case PaddingMode::circular:
      return i < 0 ? i + axis.input : i - axis.input;
    case PaddingMode::reflect:
      return i < 0 ? -i : 2 * (axis.input - 1) - i;
    case PaddingMode::replicate:
      return i < 0 ? 0 : axis.input - 1;
    default:
      return -1;
  }
}

// The input coordinate i that output coordinate o reads through kernel tap k, or -1 for none.
// taps.h has the same as tables, solved for o.
CONV2AFFINE_HOST_DEVICE inline int64_t tap(const Axis& axis, int64_t o, int64_t k) {
  if (!axis.transposed) return fold(axis, o * axis.stride - axis.padding + k * axis.dilation);
  const int64_t distance = o + axis.padding - k * axis.dilation;
  if (distance < 0 || distance % axis.stride != 0) return -1;
  const int64_t i = distance / axis.stride;
  return i < axis.input ? i : -1;
}

}  // namespace conv2affine
