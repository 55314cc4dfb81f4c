#include "dense.h"

#include <ATen/Dispatch_v2.h>
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

#include "convolution.h"
#include "taps.h"

namespace conv2affine {

namespace {

// The entries that a thread should at least have to write: below this, waking it costs more than it gains.
constexpr int64_t kGrainEntries = 32768;

// Writes rows [begin, end) of the matrix into memory that holds zeros; `matrix` points at row `begin`, `weight` is
// contiguous. Where no two taps meet, weights are stored instead of added: then -0.0 and NaN payloads survive.
template <typename scalar_t, bool overlaps>
void fill_rows(const Convolution& conv, const std::array<AxisTaps, 3>& taps, const scalar_t* weight, scalar_t* matrix,
               int64_t begin, int64_t end) {
  const auto& [axis1, axis2, axis3] = conv.axes;
  const int64_t inputs = conv.inputs(), kernel = conv.taps(), cols = conv.cols();
  int64_t o3 = begin % axis3.output;
  int64_t o2 = begin / axis3.output % axis2.output;
  int64_t o1 = begin / (axis3.output * axis2.output) % axis1.output;
  int64_t co = begin / conv.outputs();
  for (int64_t r = begin; r < end; ++r, matrix += cols) {
    const Reads reads1 = taps[0][o1], reads2 = taps[1][o2], reads3 = taps[2][o3];
    const int64_t ci_begin = co / conv.out_per_group * conv.in_per_group;
    scalar_t* row =
        matrix + ci_begin * inputs + (reads1.shift * axis2.input + reads2.shift) * axis3.input + reads3.shift;
    const scalar_t* weights = weight + co * conv.in_per_group * kernel;
    for (int64_t ci = 0; ci < conv.in_per_group; ++ci, row += inputs, weights += kernel) {
      for (const Tap& t1 : reads1) {
        for (const Tap& t2 : reads2) {
          scalar_t* to = row + (t1.input * axis2.input + t2.input) * axis3.input;
          const scalar_t* from = weights + (t1.kernel * axis2.kernel + t2.kernel) * axis3.kernel;
          for (const Tap& t3 : reads3) {
            if constexpr (overlaps) {
              to[t3.input] += from[t3.kernel];
            } else {
              to[t3.input] = from[t3.kernel];
            }
          }
        }
      }
    }
    if (++o3 < axis3.output) continue;
    o3 = 0;
    if (++o2 < axis2.output) continue;
    o2 = 0;
    if (++o1 < axis1.output) continue;
    o1 = 0;
    ++co;
  }
}

at::Tensor dense_cpu(const at::Tensor& weight, at::IntArrayRef input_size, at::IntArrayRef output_size,
                     at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, std::string_view rule,
                     int64_t row_start, int64_t row_stop) {
  const Convolution conv =
      check_convolution(weight, input_size, output_size, stride, padding, dilation, rule, row_start, row_stop);
  const std::array<AxisTaps, 3> taps = {AxisTaps(conv.axes[0]), AxisTaps(conv.axes[1]), AxisTaps(conv.axes[2])};
  const bool overlaps = std::any_of(taps.begin(), taps.end(), [](const AxisTaps& t) { return t.overlaps(); });
  const at::Tensor weights = weight.contiguous();  // (groups, out/group, in/group, k1, k2, k3)
  const at::Tensor matrix = at::zeros({row_stop - row_start, conv.cols()}, weight.options());
  const int64_t grain = std::max<int64_t>(1, kGrainEntries / (conv.in_per_group * conv.taps()));
  AT_DISPATCH_V2(weight.scalar_type(), "conv2affine::dense", AT_WRAP([&] {
                   const scalar_t* from = weights.const_data_ptr<scalar_t>();
                   scalar_t* to = matrix.mutable_data_ptr<scalar_t>();
                   at::parallel_for(row_start, row_stop, grain, [&](int64_t begin, int64_t end) {
                     scalar_t* first = to + (begin - row_start) * conv.cols();
                     if (overlaps) {
                       fill_rows<scalar_t, true>(conv, taps, from, first, begin, end);
                     } else {
                       fill_rows<scalar_t, false>(conv, taps, from, first, begin, end);
                     }
                   });
                 }),
                 AT_EXPAND(AT_ALL_TYPES), AT_EXPAND(AT_COMPLEX_TYPES), at::kHalf, at::kBFloat16);
  return matrix;
}

}  // namespace

TORCH_LIBRARY_IMPL(conv2affine, CPU, m) { m.impl("dense", static_cast<Dense*>(&dense_cpu)); }

}  // namespace conv2affine
