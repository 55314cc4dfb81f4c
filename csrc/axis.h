// One spatial axis of a convolution, and the one rule of the whole library: tap().
// No torch in here: the CPU and the CUDA kernels share this file.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define CONV2AFFINE_HOST_DEVICE __host__ __device__
#else
#define CONV2AFFINE_HOST_DEVICE
#endif

namespace conv2affine {

// How an output coordinate finds its input coordinate: the padding mode, or transposition.
enum class Rule { zeros, circular, reflect, replicate, transposed };

// All sizes are at least 1, padding (the left one) at least 0; the right padding shows in `output`.
// The check that makes an Axis also guarantees that nothing below overflows 64 bits.
struct Axis {
  int64_t input;
  int64_t output;
  int64_t kernel;
  int64_t stride;
  int64_t padding;
  int64_t dilation;
  Rule rule;
};

// Coordinate `i` of the padded axis, folded back into [0, input) as F.pad fills its margins; -1 where it pads zeros.
// The folds hold for any i, so that no call can reach outside of the input.
CONV2AFFINE_HOST_DEVICE inline int64_t fold(const Axis& axis, int64_t i) {
  if (0 <= i && i < axis.input) return i;
  switch (axis.rule) {
    case Rule::circular: {
      const int64_t rest = i % axis.input;
      return rest < 0 ? rest + axis.input : rest;
    }
    case Rule::reflect: {
      if (axis.input == 1) return 0;
      const int64_t period = 2 * (axis.input - 1);
      const int64_t rest = (i < 0 ? -i : i) % period;
      return rest < axis.input ? rest : period - rest;
    }
    case Rule::replicate:
      return i < 0 ? 0 : axis.input - 1;
    default:
      return -1;
  }
}

// The input coordinate i that output coordinate o reads through kernel tap k, or -1 for none.
CONV2AFFINE_HOST_DEVICE inline int64_t tap(const Axis& axis, int64_t o, int64_t k) {
  if (axis.rule != Rule::transposed) {
    return fold(axis, o * axis.stride - axis.padding + k * axis.dilation);
  }
  const int64_t distance = o + axis.padding - k * axis.dilation;
  if (distance < 0 || distance % axis.stride != 0) return -1;
  const int64_t i = distance / axis.stride;
  return i < axis.input ? i : -1;
}

}  // namespace conv2affine
