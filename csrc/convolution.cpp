#include "convolution.h"

#include <c10/util/Exception.h>
#include <c10/util/safe_numerics.h>

#include <algorithm>
#include <utility>

namespace conv2affine {

namespace {

PaddingMode parse_padding_mode(std::string_view mode) {
  if (mode == "zeros") return PaddingMode::zeros;
  if (mode == "circular") return PaddingMode::circular;
  if (mode == "reflect") return PaddingMode::reflect;
  if (mode == "replicate") return PaddingMode::replicate;
  TORCH_CHECK_VALUE(false, "padding_mode ('", mode, "') must be one of 'zeros', 'circular', 'reflect', 'replicate'");
}

}  // namespace

int64_t checked_product(at::IntArrayRef factors, const char* what) {
  uint64_t result = 1;
  for (const int64_t factor : factors) {
    const bool overflows = c10::mul_overflows(result, static_cast<uint64_t>(factor), &result);
    TORCH_CHECK_VALUE(!overflows && result <= INT64_MAX, "the number of ", what, " (product of ", factors,
                      ") must fit into a signed 64-bit integer");
  }
  return static_cast<int64_t>(result);
}

Axis check_axis(std::string_view name, int64_t input, int64_t output, int64_t kernel, int64_t stride, int64_t padding,
                int64_t dilation, std::string_view padding_mode, bool transposed) {
  TORCH_CHECK_VALUE(input >= 1 && output >= 1 && kernel >= 1, name, ": input size (", input, "), output size (", output,
                    ") and kernel size (", kernel, ") must be >= 1");
  TORCH_CHECK_VALUE(stride >= 1 && dilation >= 1, name, ": stride (", stride, ") and dilation (", dilation,
                    ") must be >= 1");
  TORCH_CHECK_VALUE(padding >= 0, name, ": padding (", padding, ") must be >= 0");
  // The largest coordinate that tap() or AxisTaps can come to; twice it, so that no sum of two of them overflows.
  int64_t reach = 0, along_output = 0, along_input = 0, largest = 0;
  const bool overflows =
      c10::mul_overflows(kernel, dilation, &reach) || c10::mul_overflows(output, stride, &along_output) ||
      c10::mul_overflows(input, stride, &along_input) || c10::add_overflows(reach, along_output, &largest) ||
      c10::add_overflows(largest, along_input, &largest) || c10::add_overflows(largest, padding, &largest) ||
      c10::mul_overflows(largest, int64_t{2}, &largest);
  TORCH_CHECK_VALUE(!overflows, name, ": input size (", input, "), output size (", output, "), kernel size (", kernel,
                    "), stride (", stride, "), padding (", padding, ") and dilation (", dilation,
                    ") give coordinates that do not fit into a signed 64-bit integer");
  const PaddingMode mode = parse_padding_mode(padding_mode);
  TORCH_CHECK_VALUE(!transposed || mode == PaddingMode::zeros, name, ": padding_mode ('", padding_mode,
                    "') must be 'zeros' in a transposed convolution");
  if (mode == PaddingMode::circular || mode == PaddingMode::reflect) {
    const int64_t max_padding = mode == PaddingMode::circular ? input : input - 1;
    const int64_t right = (output - 1) * stride - padding + (kernel - 1) * dilation - (input - 1);
    TORCH_CHECK_VALUE(padding <= max_padding && right <= max_padding, name, ": padding (", padding, " on the left, ",
                      std::max<int64_t>(right, 0), " on the right) must be at most ", max_padding,
                      " with padding_mode '", padding_mode, "' and input size ", input);
  }
  return {input, output, kernel, stride, padding, dilation, mode, transposed};
}

Convolution check_convolution(at::IntArrayRef weight_size, at::IntArrayRef geometry, std::string_view padding_mode,
                              bool transposed) {
  const int64_t dims = static_cast<int64_t>(weight_size.size()) - 3;
  TORCH_CHECK_VALUE(1 <= dims && dims <= 3,
                    "weight must have the shape (groups, out/group, in/group, K_1, ..., K_D) with D from 1 to 3, got ",
                    weight_size);
  TORCH_CHECK_VALUE(weight_size[0] >= 1 && weight_size[1] >= 1 && weight_size[2] >= 1,
                    "weight must have at least one group, output channel and input channel, got shape ", weight_size);
  TORCH_CHECK_VALUE(static_cast<int64_t>(geometry.size()) == 5 * dims, "geometry must have ", 5 * dims, " values, ",
                    dims, " each for input_size, output_size, stride, padding and dilation, got ", geometry);
  Convolution conv{weight_size[0], weight_size[1], weight_size[2], {}};
  conv.axes.fill({1, 1, 1, 1, 0, 1, PaddingMode::zeros, false});  // what leads in 1-D and 2-D
  constexpr std::array<std::string_view, 3> names = {"axis 0", "axis 1", "axis 2"};
  for (int64_t axis = 0; axis < dims; ++axis) {
    const auto number = [&](int64_t which) { return geometry[which * dims + axis]; };
    conv.axes[3 - dims + axis] = check_axis(names[axis], number(0), number(1), weight_size[3 + axis], number(2),
                                            number(3), number(4), padding_mode, transposed);
  }
  checked_product(weight_size, "weights");
  const int64_t rows = checked_product(
      {conv.groups, conv.out_per_group, conv.axes[0].output, conv.axes[1].output, conv.axes[2].output}, "rows");
  const int64_t cols = checked_product(
      {conv.groups, conv.in_per_group, conv.axes[0].input, conv.axes[1].input, conv.axes[2].input}, "columns");
  checked_product({rows, cols}, "elements of the matrix");
  return conv;
}

Convolution Convolution::transposed() const {
  Convolution result = *this;
  std::swap(result.out_per_group, result.in_per_group);
  for (Axis& axis : result.axes) std::swap(axis.input, axis.output);
  return result;
}

}  // namespace conv2affine
