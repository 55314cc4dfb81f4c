#include "cuda/table.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include <array>
#include <vector>

namespace conv2affine {

namespace {

// Where the arrays of an AxisTable begin.
struct Begins {
  int64_t before, first_run, runs, terms;
};

// Appends them.
Begins append(const AxisTaps& taps, std::vector<int64_t>& numbers) {
  std::vector<int64_t> before = {0}, first_run = {0}, runs, terms;
  const auto append_run = [&](int64_t input, int64_t step, int64_t count) {
    runs.insert(runs.end(), {input, step, count, static_cast<int64_t>(terms.size()) / 3});
  };
  for (int64_t p = 0; p < taps.patterns(); ++p) {
    for (const TapRun& run : taps.runs(p)) {
      append_run(run.input, run.step, run.count);
      for (const TapTerm& term : taps.terms(run)) terms.insert(terms.end(), {term.kernel, term.step, term.taps});
    }
    before.push_back(before.back() + taps.nnz_of(p));
    first_run.push_back(static_cast<int64_t>(runs.size()) / 4);
  }
  append_run(0, 1, 0);
  const auto append_numbers = [&](const std::vector<int64_t>& part) {
    const int64_t begin = numbers.size();
    numbers.insert(numbers.end(), part.begin(), part.end());
    return begin;
  };
  static_assert(sizeof(TapRun) == 4 * sizeof(int64_t) && sizeof(TapTerm) == 3 * sizeof(int64_t));
  return {append_numbers(before), append_numbers(first_run), append_numbers(runs), append_numbers(terms)};
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
  std::array<Begins, 3> begins;
  for (int axis = 0; axis < 3; ++axis) begins[axis] = append(rows.taps[axis], numbers);
  const int64_t count = numbers.size();
  const at::Tensor memory = at::empty({count}, options.dtype(at::kLong));
  int64_t* const to = memory.mutable_data_ptr<int64_t>();
  C10_CUDA_CHECK(launch_upload(numbers.data(), to, count, current_stream()));
  const auto table = [&](int which) {
    const Axis& axis = rows.conv.axes[which];
    const AxisTaps& taps = rows.taps[which];
    const Begins& begin = begins[which];
    return AxisTable{taps.zones(),
                     axis.input,
                     axis.output,
                     axis.kernel,
                     taps.nnz(),
                     to + begin.before,
                     to + begin.first_run,
                     reinterpret_cast<const TapRun*>(to + begin.runs),
                     reinterpret_cast<const TapTerm*>(to + begin.terms)};
  };
  return {{rows.conv.out_per_group, rows.conv.in_per_group, table(0), table(1), table(2)}, memory};
}

}  // namespace conv2affine
