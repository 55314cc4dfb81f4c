#include "sums.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/bitwise_right_shift.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

#include "sparse.h"

namespace conv2affine {

namespace {

struct Range {
  double low, high;
};

Range range_of(const at::Tensor& numbers) {
  const auto [low, high] = at::aminmax(numbers);
  return {low.item().toDouble(), high.item().toDouble()};
}

Range range_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kByte:
      return {0, 255};
    case at::kChar:
      return {-128, 127};
    case at::kShort:
      return {-32768, 32767};
    case at::kInt:
      return {-0x1p31, 0x1p31 - 1};
    case at::kLong:
      return {-0x1p63, 0x1p63};  // as near as a double comes
    default:
      return {-65504, 65504};  // float16
  }
}

}  // namespace

void check_sums(const MatrixRows& rows, const at::Tensor& weight, at::IntArrayRef geometry,
                std::string_view padding_mode, bool transposed) {
  if (rows.max_taps() == 1) return;
  const at::ScalarType dtype = weight.scalar_type();
  switch (dtype) {
    case at::kBFloat16:
    case at::kFloat:
    case at::kDouble:
    case at::kComplexFloat:
    case at::kComplexDouble:
      return;  // what is too large becomes infinite, as in PyTorch's convolution
    case at::kByte:
    case at::kChar:
    case at::kShort:
    case at::kInt:
    case at::kLong:
    case at::kHalf:
      break;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(false, "weights of ", dtype, " are copied, but not added up, and up to ",
                                  rows.max_taps(), " of them meet in one entry; convert weight to another dtype");
  }
  if (rows.nnz() == 0) return;
  // What is not finite stays so in its sums; the others are checked without it.
  const at::Tensor finite = dtype == at::kHalf ? weight.nan_to_num(0, 0, 0) : weight;
  const Range limit = range_of(dtype), each = range_of(finite);
  // Half of the limit: each addition of float16 rounds.
  const double largest = static_cast<double>(rows.max_taps()) * std::max(std::abs(each.low), std::abs(each.high));
  if (largest <= limit.high / 2) return;

  static const auto values = c10::Dispatcher::singleton().findSchemaOrThrow("conv2affine::values", "").typed<Values>();
  const at::AutoDispatchBelowAutograd guard;
  const auto sums_of = [&](const at::Tensor& weights) {
    return values.call(weights, geometry, padding_mode, transposed, rows.start, rows.stop, rows.by_columns);
  };
  Range sums{};
  bool fits = true;
  if (dtype == at::kLong) {
    // In two halves, whose sums fit: sum == high * 2^32 + low. So the check is exact near 2^63, where a double is not.
    fits = rows.max_taps() <= int64_t{1} << 30;
    if (fits) {
      const at::Tensor high = sums_of(at::bitwise_right_shift(weight, 32));
      const at::Tensor low = sums_of(at::bitwise_and(weight, 0xffffffff));
      const Range carried = range_of(high.add(at::bitwise_right_shift(low, 32)));
      fits = -0x1p31 <= carried.low && carried.high < 0x1p31;
    }
    if (!fits) sums = range_of(sums_of(weight.to(at::kDouble)));
  } else {
    // Sums of float16 round on the way: as long as the magnitudes fit together, so does each step.
    sums = range_of(sums_of(dtype == at::kHalf ? at::abs(finite.to(at::kDouble)) : weight.to(at::kLong)));
    fits = limit.low <= sums.low && sums.high <= limit.high;
  }
  TORCH_CHECK_VALUE(fits, "weight (", dtype, ") must have sums within [", limit.low, ", ", limit.high,
                    "] where taps meet in one entry, got ", dtype == at::kHalf ? "magnitudes" : "sums", " from ",
                    sums.low, " to ", sums.high, "; convert weight to a larger dtype");
}

}  // namespace conv2affine
