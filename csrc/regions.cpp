#include "regions.h"

#include <algorithm>

namespace conv2affine {

int64_t ceil_div(int64_t numerator, int64_t denominator) {
  return numerator <= 0 ? numerator / denominator : (numerator - 1) / denominator + 1;
}

int64_t reach(const Axis& axis) { return (axis.kernel - 1) * axis.dilation; }

// The interior is where no tap reads outside of the input. Of a transposed convolution, only distances that the stride
// divides count.
Regions regions_of(const Axis& axis) {
  Regions regions{};
  int64_t beyond_left = 0, beyond_right = INT64_MAX;
  if (axis.transposed) {
    regions.period = axis.stride;
    regions.step = 1;
    regions.begin = reach(axis) - axis.padding - (axis.stride - 1);
    regions.end = axis.input * axis.stride - axis.padding;
    beyond_right = (axis.input - 1) * axis.stride + reach(axis) - axis.padding + 1;
  } else {
    regions.step = axis.stride;
    regions.begin = ceil_div(axis.padding, axis.stride);
    const int64_t last = axis.input - 1 + axis.padding - reach(axis);
    regions.end = last < 0 ? 0 : last / axis.stride + 1;
    if (axis.padding_mode == PaddingMode::zeros || axis.padding_mode == PaddingMode::replicate) {
      beyond_left = ceil_div(axis.padding - reach(axis), axis.stride);
      beyond_right = ceil_div(axis.input + axis.padding, axis.stride);
    }
  }
  regions.begin = std::clamp<int64_t>(regions.begin, 0, axis.output);
  regions.end = std::clamp(regions.end, regions.begin, axis.output);
  regions.patterns = std::min(regions.period, regions.end - regions.begin);
  regions.saturated_left = std::max<int64_t>(0, std::min(beyond_left, regions.begin) - 1);
  regions.saturated_right = std::max(beyond_right, regions.end);
  return regions;
}

// The regions of the transposed table of an axis whose padding is folded: inputs that padding is folded to are borders.
//
// With input 6, kernel 3, padding 1 and stride 1, the outputs read the coordinates -1 ... 6, so `last` is 6. Without
// folding, inputs 1 ... 4 are the interior. Coordinates -1 and 6 are folded to
//
//     circular     inputs 5 and 0, borders already: the interior is [1, 5)
//     reflect      inputs 1 and 4: the interior is [2, 4)
//     replicate    inputs 0 and 5, borders already: the interior is [1, 5)
Regions folded_regions(const Axis& axis, Regions regions) {
  const int64_t last = (axis.output - 1) * axis.stride - axis.padding + reach(axis);
  const bool left = axis.padding > 0, right = last >= axis.input;
  int64_t begin = 0, end = axis.input;
  if (axis.padding_mode == PaddingMode::circular) {
    begin = last - axis.input + 1;
    end = axis.input - axis.padding;
  } else if (axis.padding_mode == PaddingMode::reflect) {
    begin = left ? axis.padding + 1 : 0;
    end = right ? 2 * (axis.input - 1) - last : axis.input;
  } else {
    begin = left ? 1 : 0;
    end = right ? axis.input - 1 : axis.input;
  }
  regions.begin = std::clamp<int64_t>(std::max(regions.begin, begin), 0, axis.input);
  regions.end = std::clamp(std::min(regions.end, end), regions.begin, axis.input);
  regions.patterns = std::min(regions.period, regions.end - regions.begin);
  regions.saturated_left = 0;
  regions.saturated_right = INT64_MAX;
  return regions;
}

}  // namespace conv2affine
