#include "cuda/table.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include <array>
#include <cstring>
#include <span>
#include <vector>

namespace conv2affine {

namespace {

// Where the arrays of an AxisTable start.
struct Offsets {
  int64_t before, first_run, runs, terms;
};

// Appends an array of structs of int64 as plain numbers; returns where it starts.
template <typename T>
int64_t append(std::span<const T> array, std::vector<int64_t>& numbers) {
  static_assert(sizeof(T) % sizeof(int64_t) == 0);
  const int64_t start = numbers.size();
  numbers.resize(start + array.size_bytes() / sizeof(int64_t));
  std::memcpy(numbers.data() + start, array.data(), array.size_bytes());
  return start;
}

}  // namespace

void* current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

Dtype dtype_of(at::ScalarType type) {
  switch (type) {
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
      break;
  }
  switch (c10::elementSize(type)) {
    case 1:
      return Dtype::int8;
    case 2:
      return Dtype::int16;
    case 4:
      return Dtype::int32;
    case 8:
      return Dtype::int64;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(false, "weights of ", type, " cannot be copied");
  }
}

Dtype float_dtype_of(at::ScalarType type, const char* op) {
  const Dtype dtype = dtype_of(type);
  TORCH_CHECK_NOT_IMPLEMENTED(dtype >= Dtype::half, "\"conv2affine::", op, "\" not implemented for '", type, "'");
  return dtype;
}

UploadedTable upload(const MatrixRows& rows, const at::TensorOptions& options) {
  std::vector<int64_t> numbers;
  std::array<Offsets, 3> offsets;
  for (int axis = 0; axis < 3; ++axis) {
    const AxisTaps::Arrays arrays = rows.taps[axis].arrays();
    offsets[axis] = {append(arrays.nnz_before, numbers), append(arrays.first_run, numbers),
                     append(arrays.runs, numbers), append(arrays.terms, numbers)};
  }
  const int64_t count = numbers.size();
  const at::Tensor memory = at::empty({count}, options.dtype(at::kLong));
  int64_t* const to = memory.mutable_data_ptr<int64_t>();
  C10_CUDA_CHECK(launch_upload(numbers.data(), to, count, current_stream()));
  const auto table = [&](int which) {
    const Axis& axis = rows.conv.axes[which];
    const AxisTaps& taps = rows.taps[which];
    const Offsets& offset = offsets[which];
    return AxisTable{taps.regions(),
                     axis.input,
                     axis.output,
                     axis.kernel,
                     taps.nnz(),
                     to + offset.before,
                     to + offset.first_run,
                     reinterpret_cast<const TapRun*>(to + offset.runs),
                     reinterpret_cast<const TapTerm*>(to + offset.terms)};
  };
  return {{rows.conv.out_per_group, rows.conv.in_per_group, table(0), table(1), table(2)}, memory};
}

}  // namespace conv2affine
