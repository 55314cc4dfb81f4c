#include "dense.h"

#include <ATen/Dispatch_v2.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "convolution.h"
#include "cpu/memory.h"
#include "rows.h"

namespace conv2affine {

namespace {

// Writes rows [begin, end) of the matrix into memory that holds zeros; `matrix` points at row `begin`, `weight` is
// contiguous.
template <typename scalar_t>
void fill_rows(const Convolution& conv, const Taps& taps, const scalar_t* weight, scalar_t* matrix, int64_t begin,
               int64_t end) {
  const int64_t cols = conv.cols(), kernel = conv.in_per_group * conv.taps();
  Rows<int64_t> rows(conv, taps, begin);
  for (int64_t r = begin; r < end;) {
    const Run run = rows.next(end - r);
    const int64_t* columns = run.pattern.columns.data();
    for (int64_t n = 0; n < run.rows; ++n, matrix += cols) {
      scalar_t* to = matrix + run.shift + n * run.step;
      run.pattern.for_each(weight + run.co * kernel, [=](int64_t e, scalar_t value) { to[columns[e]] = value; });
    }
    r += run.rows;
  }
}

at::Tensor dense_cpu(const at::Tensor& weight, at::IntArrayRef geometry, std::string_view rule, int64_t row_start,
                     int64_t row_stop) {
  const Convolution conv = check_convolution(weight, geometry, rule);
  check_rows(row_start, row_stop, conv.rows());
  const int64_t itemsize = static_cast<int64_t>(weight.element_size());
  checked_product({row_stop - row_start, conv.cols(), itemsize}, "bytes of the dense matrix");
  const Taps taps = make_taps(conv);
  const at::Tensor weights = weight.contiguous();  // (groups, out/group, in/group, k1, k2, k3)
  const at::Tensor matrix =
      zeros({row_stop - row_start, conv.cols()}, weight.options(), wants_huge_pages(conv, itemsize));
  AT_DISPATCH_V2(weight.scalar_type(), "conv2affine::dense", AT_WRAP([&] {
                   const scalar_t* from = weights.const_data_ptr<scalar_t>();
                   scalar_t* to = matrix.mutable_data_ptr<scalar_t>();
                   at::parallel_for(row_start, row_stop, grain_rows(conv), [&](int64_t begin, int64_t end) {
                     fill_rows(conv, taps, from, to + (begin - row_start) * conv.cols(), begin, end);
                   });
                 }),
                 AT_EXPAND(AT_ALL_TYPES), AT_EXPAND(AT_COMPLEX_TYPES), at::kHalf, at::kBFloat16);
  return matrix;
}

}  // namespace

TORCH_LIBRARY_IMPL(conv2affine, CPU, m) { m.impl("dense", static_cast<Dense*>(&dense_cpu)); }

}  // namespace conv2affine
