// The dtypes as the kernels see them, without torch: what can be copied and added.
#pragma once

#include <cstdint>
#include <cstring>

#include "axis.h"

namespace conv2affine {

// Integers wrap alike with and without a sign: one entry serves both.
enum class Dtype { int8, int16, int32, int64, half, bfloat16, float32, float64, complex64, complex128 };

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

template <typename real_t>
struct alignas(2 * sizeof(real_t)) Complex {
  real_t real, imag;
};

template <typename to_t, typename from_t>
CONV2AFFINE_HOST_DEVICE to_t reinterpret(from_t from) {
  static_assert(sizeof(to_t) == sizeof(from_t));
  to_t to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

CONV2AFFINE_HOST_DEVICE inline float to_float(Half value) {
  const uint32_t magnitude = value.bits & 0x7fffu, sign = (value.bits & 0x8000u) << 16;
  // As a float, the shifted bits are too small by 2^(127 - 15), subnormal numbers included.
  const float scaled = reinterpret<float>(magnitude << 13) * 0x1p112f;
  const uint32_t bits = magnitude >= 0x7c00u ? (magnitude << 13) | 0x7f800000u : reinterpret<uint32_t>(scaled);
  return reinterpret<float>(bits | sign);
}

CONV2AFFINE_HOST_DEVICE inline float to_float(BFloat16 value) {
  return reinterpret<float>(static_cast<uint32_t>(value.bits) << 16);
}

// Both round to nearest, ties to even.
CONV2AFFINE_HOST_DEVICE inline Half to_half(float value) {
  const uint32_t bits = reinterpret<uint32_t>(value), magnitude = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  uint32_t result;
  if (magnitude >= 0x47800000u) {  // from 2^16 on: infinity, or not a number
    result = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 makes the adder round at the right bit
    result = reinterpret<uint32_t>(reinterpret<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {  // the exponent moves by 127 - 15; a carry out of the fraction is right, up to infinity
    result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(result | sign)};
}

CONV2AFFINE_HOST_DEVICE inline BFloat16 to_bfloat16(float value) {
  const uint32_t bits = reinterpret<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0u};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// Half types round after each addition, as PyTorch's do.
template <typename number_t>
CONV2AFFINE_HOST_DEVICE number_t add(number_t a, number_t b) {
  return static_cast<number_t>(a + b);
}
CONV2AFFINE_HOST_DEVICE inline Half add(Half a, Half b) { return to_half(to_float(a) + to_float(b)); }
CONV2AFFINE_HOST_DEVICE inline BFloat16 add(BFloat16 a, BFloat16 b) { return to_bfloat16(to_float(a) + to_float(b)); }
template <typename real_t>
CONV2AFFINE_HOST_DEVICE Complex<real_t> add(Complex<real_t> a, Complex<real_t> b) {
  return {a.real + b.real, a.imag + b.imag};
}

// What long sums are kept in: float32 for half types, else the type itself.
template <typename number_t>
CONV2AFFINE_HOST_DEVICE number_t to_sum(number_t value) {
  return value;
}
CONV2AFFINE_HOST_DEVICE inline float to_sum(Half value) { return to_float(value); }
CONV2AFFINE_HOST_DEVICE inline float to_sum(BFloat16 value) { return to_float(value); }

// Calls f with a zero of the floating-point or complex type.
template <typename F>
auto dispatch_float(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::half:
      return f(Half{});
    case Dtype::bfloat16:
      return f(BFloat16{});
    case Dtype::float32:
      return f(float{});
    case Dtype::float64:
      return f(double{});
    case Dtype::complex64:
      return f(Complex<float>{});
    default:
      return f(Complex<double>{});
  }
}

// Calls f with a zero of the type.
template <typename F>
auto dispatch(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::int8:
      return f(uint8_t{});
    case Dtype::int16:
      return f(uint16_t{});
    case Dtype::int32:
      return f(uint32_t{});
    case Dtype::int64:
      return f(uint64_t{});
    default:
      return dispatch_float(dtype, f);
  }
}

}  // namespace conv2affine
