#include "bias.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/memory.h"

namespace conv2affine {

namespace {

at::Tensor bias_cpu(const at::Tensor& bias, int64_t outputs) {
  constexpr int64_t kGrain = 1 << 18;
  const at::Tensor result = empty({bias.numel() * outputs}, bias.options());
  dispatch(bias.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t* from = read<scalar_t>(bias);
    scalar_t* to = write<scalar_t>(result);
    at::parallel_for(0, bias.numel(), std::max<int64_t>(1, kGrain / outputs), [&](int64_t begin, int64_t end) {
      for (int64_t co = begin; co < end; ++co) std::fill_n(to + co * outputs, outputs, from[co]);
    });
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(conv2affine, CPU, m) { m.impl("bias", &bias<bias_cpu>); }

}  // namespace conv2affine
