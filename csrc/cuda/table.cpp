#include "cuda/table.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <array>
#include <vector>

namespace conv2affine {

namespace {

// Appends the arrays of AxisTable, one behind the other, and returns where each begins.
std::array<int64_t, 4> append(const AxisTaps& taps, std::vector<int64_t>& numbers) {
  std::vector<int64_t> first_entry = {0}, input_of, first_tap, kernel_of;
  for (int64_t p = 0; p < taps.patterns(); ++p) {
    for (const Tap& tap : taps.taps(p)) {
      const bool joins = static_cast<int64_t>(input_of.size()) > first_entry.back() && input_of.back() == tap.input;
      if (!joins) {
        input_of.push_back(tap.input);
        first_tap.push_back(kernel_of.size());
      }
      kernel_of.push_back(tap.kernel);
    }
    first_entry.push_back(input_of.size());
  }
  first_tap.push_back(kernel_of.size());
  std::array<int64_t, 4> begins{};
  int which = 0;
  for (const std::vector<int64_t>* part : {&first_entry, &input_of, &first_tap, &kernel_of}) {
    begins[which++] = numbers.size();
    numbers.insert(numbers.end(), part->begin(), part->end());
  }
  return begins;
}

}  // namespace

void* current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

Dtype dtype_of(at::ScalarType type, const char* op) {
  switch (type) {
    case at::kByte:
    case at::kChar:
      return Dtype::int8;
    case at::kShort:
      return Dtype::int16;
    case at::kInt:
      return Dtype::int32;
    case at::kLong:
      return Dtype::int64;
    case at::kHalf:
      return Dtype::half;
    case at::kBFloat16:
      return Dtype::bfloat16;
    case at::kFloat:
      return Dtype::float32;
    case at::kDouble:
      return Dtype::float64;
    case at::kComplexFloat:
      return Dtype::complex64;
    case at::kComplexDouble:
      return Dtype::complex128;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(false, "\"conv2affine::", op, "\" not implemented for '", type, "'");
  }
}

UploadedTable upload(const Convolution& conv, const Taps& taps, const at::TensorOptions& options) {
  std::vector<int64_t> numbers;
  std::array<std::array<int64_t, 4>, 3> begins;
  for (int axis = 0; axis < 3; ++axis) begins[axis] = append(taps[axis], numbers);
  const int64_t count = numbers.size();
  const at::Tensor memory = at::empty({count}, options.dtype(at::kLong));
  int64_t* const to = memory.mutable_data_ptr<int64_t>();
  C10_CUDA_CHECK(launch_upload(numbers.data(), to, count, current_stream()));
  const auto table = [&](int axis) {
    const auto& [input, output, kernel, stride, padding, dilation, rule] = conv.axes[axis];
    const auto& [first_entry, input_of, first_tap, kernel_of] = begins[axis];
    return AxisTable{taps[axis].interior(), input,         output,         kernel,        taps[axis].entries(),
                     to + first_entry,      to + input_of, to + first_tap, to + kernel_of};
  };
  return {{conv.out_per_group, conv.in_per_group, table(0), table(1), table(2)}, memory};
}

}  // namespace conv2affine
