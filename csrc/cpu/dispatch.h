// The types in which kernels copy and add weights.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <c10/util/complex.h>

#include <cstdint>

namespace conv2affine {

// Calls f with a zero of the type. What is no floating-point type comes as an unsigned integer of its size: it is
// copied, or added up where check_sums() allows it, and integers add alike with and without a sign.
template <typename F>
void dispatch(at::ScalarType dtype, const F& f) {
  switch (dtype) {
    case at::kHalf:
      return f(at::Half{});
    case at::kBFloat16:
      return f(at::BFloat16{});
    case at::kFloat:
      return f(float{});
    case at::kDouble:
      return f(double{});
    case at::kComplexFloat:
      return f(c10::complex<float>{});
    case at::kComplexDouble:
      return f(c10::complex<double>{});
    default:
      break;
  }
  switch (c10::elementSize(dtype)) {
    case 1:
      return f(uint8_t{});
    case 2:
      return f(uint16_t{});
    case 4:
      return f(uint32_t{});
    case 8:
      return f(uint64_t{});
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(false, "weights of ", dtype, " cannot be copied");
  }
}

// The elements of a tensor as that type.
template <typename scalar_t>
const scalar_t* read(const at::Tensor& tensor) {
  return static_cast<const scalar_t*>(tensor.const_data_ptr());
}
template <typename scalar_t>
scalar_t* write(const at::Tensor& tensor) {
  return static_cast<scalar_t*>(tensor.mutable_data_ptr());
}

}  // namespace conv2affine
