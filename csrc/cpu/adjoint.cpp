#include "adjoint.h"

#include <ATen/Dispatch_v2.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "convolution.h"
#include "cpu/line_sums.h"
#include "rows.h"

namespace conv2affine {

namespace {

// What weights are summed in: half types in float32, integers in 64 bits.
template <typename scalar_t>
using acc_t = std::conditional_t<std::is_integral_v<scalar_t>, int64_t, at::opmath_type<scalar_t>>;

// The rows of a dense matrix from one on, gathered to lie as in a sparse one.
template <typename scalar_t>
struct DenseSource {
  Rows<int64_t> rows;
  const scalar_t* row;
  int64_t row_stride, column_stride;
  int64_t line;     // rows of one
  int64_t entries;  // of a row, at the most
  std::vector<scalar_t> gathered = {};

  // Adds the next rows, at most `most`, which begin at `at`; returns their number.
  int64_t add(const Position& at, int64_t most, LineSums<acc_t<scalar_t>>& sums, acc_t<scalar_t>* weights) {
    most = std::min({most, line - at.o3, std::max<int64_t>(1, kLineEntries / std::max<int64_t>(1, entries))});
    gathered.resize(most * entries);
    scalar_t* to = gathered.data();
    for (int64_t count = 0; count < most;) {
      const Run run = rows.next(most - count);
      const int64_t* columns = run.pattern.columns.data();
      const int64_t in_row = run.pattern.size();
      for (int64_t n = 0; n < run.rows; ++n, row += row_stride, to += in_row) {
        const scalar_t* from = row + (run.shift + n * run.step) * column_stride;
        for (int64_t e = 0; e < in_row; ++e) to[e] = from[columns[e] * column_stride];
      }
      count += run.rows;
    }
    const scalar_t* values = gathered.data();
    return sums.add(at, most, values, weights);
  }
};

// The rows of a sparse matrix from one on, whose values lie one behind the other.
template <typename scalar_t>
struct SparseSource {
  const scalar_t* values;

  int64_t add(const Position& at, int64_t most, LineSums<acc_t<scalar_t>>& sums, acc_t<scalar_t>* weights) {
    return sums.add(at, most, values, weights);
  }
};

// Where the parts begin that are summed for themselves, and then in order: the parts of an output channel follow from
// the sizes alone, so that the sum does not depend on the number of threads. Only few and long channels are divided.
std::vector<int64_t> parts_of(const Convolution& conv, const Taps& taps, int64_t row_start, int64_t row_stop) {
  constexpr int64_t kParts = 32;
  const int64_t channels = conv.groups * conv.out_per_group, outputs = conv.outputs();
  const int64_t most = std::clamp<int64_t>(entries_before(conv, taps, outputs) / kGrainEntries, 1, outputs);
  const int64_t parts = std::min((kParts + channels - 1) / channels, most);
  std::vector<int64_t> starts;
  starts.reserve(((row_stop - row_start) / outputs + 2) * parts + 1);
  starts.push_back(row_start);
  for (int64_t co = row_start / outputs; co * outputs < row_stop; ++co) {
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t start = co * outputs + outputs / parts * part;
      if (start > row_start && start < row_stop) starts.push_back(start);
    }
  }
  if (row_start < row_stop) starts.push_back(row_stop);
  return starts;
}

// `source_at` gives the source that begins at a row.
template <typename scalar_t, typename SourceAt>
at::Tensor adjoint(const Convolution& conv, const Taps& taps, const at::TensorOptions& options, int64_t row_start,
                   int64_t row_stop, const SourceAt& source_at) {
  using acc = acc_t<scalar_t>;
  const int64_t kernel = conv.in_per_group * conv.taps(), channels = conv.groups * conv.out_per_group;
  const std::vector<int64_t> starts = parts_of(conv, taps, row_start, row_stop);
  const int64_t parts = starts.size() - 1;
  checked_product({parts, kernel, static_cast<int64_t>(sizeof(acc))}, "bytes of the sums");
  const at::Tensor partial = at::empty({parts, kernel}, options.dtype(c10::CppTypeToScalarType<acc>::value));
  acc* const sums_of_parts = partial.mutable_data_ptr<acc>();
  const int64_t rows_of_a_part = parts == 0 ? 1 : (row_stop - row_start + parts - 1) / parts;
  const int64_t grain = std::max<int64_t>(1, kGrainEntries / (rows_of_a_part * kernel));
  at::parallel_for(0, parts, grain, [&](int64_t first, int64_t last) {
    LineSums<acc> sums(conv, taps);
    auto source = source_at(starts[first]);
    for (int64_t part = first; part < last; ++part) {
      acc* weights = sums_of_parts + part * kernel;
      std::fill_n(weights, kernel, acc(0));
      Position at = position(conv, starts[part]);
      for (int64_t left = starts[part + 1] - starts[part]; left > 0;) {
        const int64_t rows = source.add(at, left, sums, weights);
        at.advance(conv, rows);
        left -= rows;
      }
      sums.close(weights);
    }
  });
  const at::ScalarType dtype = c10::CppTypeToScalarType<scalar_t>::value;
  if (parts == channels && row_stop - row_start == conv.rows()) return partial.to(dtype);  // a part is a channel
  const at::Tensor weight = at::zeros({channels, kernel}, partial.options());
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t co = starts[part] / conv.outputs();
    add_rows(weight.mutable_data_ptr<acc>() + co * kernel, sums_of_parts + part * kernel, kernel, 1);
  }
  return weight.to(dtype);
}

at::Tensor dense_adjoint_cpu(const at::Tensor& matrix, at::IntArrayRef weight_size, at::IntArrayRef geometry,
                             std::string_view rule, int64_t row_start, int64_t row_stop) {
  const Convolution conv = check_convolution(weight_size, geometry, rule);
  check_rows(row_start, row_stop, conv.rows());
  TORCH_CHECK_VALUE(matrix.dim() == 2 && matrix.size(0) == row_stop - row_start && matrix.size(1) == conv.cols(),
                    "matrix must have shape (", row_stop - row_start, ", ", conv.cols(), "), got ", matrix.sizes());
  const Taps taps = make_taps(conv);
  const at::Tensor resolved = matrix.resolve_conj().resolve_neg();
  at::Tensor weight;
  AT_DISPATCH_V2(matrix.scalar_type(), "conv2affine::dense_adjoint", AT_WRAP([&] {
                   const scalar_t* from = resolved.const_data_ptr<scalar_t>();
                   const int64_t most_entries =
                       conv.in_per_group * taps[0].most_entries() * taps[1].most_entries() * taps[2].most_entries();
                   const int64_t row_stride = resolved.stride(0), column_stride = resolved.stride(1);
                   weight = adjoint<scalar_t>(conv, taps, matrix.options(), row_start, row_stop, [&](int64_t row) {
                     return DenseSource<scalar_t>{{conv, taps, row},   from + (row - row_start) * row_stride,
                                                  row_stride,          column_stride,
                                                  conv.axes[2].output, most_entries};
                   });
                 }),
                 AT_EXPAND(AT_ALL_TYPES), AT_EXPAND(AT_COMPLEX_TYPES), at::kHalf, at::kBFloat16);
  return weight.view(weight_size);
}

at::Tensor sparse_adjoint_cpu(const at::Tensor& values, at::IntArrayRef weight_size, at::IntArrayRef geometry,
                              std::string_view rule, int64_t row_start, int64_t row_stop, bool transpose) {
  const auto [conv, taps] = make_sides(check_convolution(weight_size, geometry, rule), transpose);
  check_rows(row_start, row_stop, conv.rows());
  const int64_t before = entries_before(conv, taps, row_start);
  const int64_t nnz = entries_before(conv, taps, row_stop) - before;
  TORCH_CHECK_VALUE(values.dim() == 1 && values.size(0) == nnz, "values must have shape (", nnz, "), got ",
                    values.sizes());
  const at::Tensor contiguous = values.resolve_conj().resolve_neg().contiguous();
  at::Tensor weight;
  AT_DISPATCH_V2(values.scalar_type(), "conv2affine::sparse_adjoint", AT_WRAP([&] {
                   const scalar_t* from = contiguous.const_data_ptr<scalar_t>();
                   weight = adjoint<scalar_t>(conv, taps, values.options(), row_start, row_stop, [&](int64_t row) {
                     return SparseSource<scalar_t>{from + entries_before(conv, taps, row) - before};
                   });
                 }),
                 AT_EXPAND(AT_ALL_TYPES), AT_EXPAND(AT_COMPLEX_TYPES), at::kHalf, at::kBFloat16);
  if (!transpose) return weight.view(weight_size);
  std::vector<int64_t> size = weight_size.vec();
  std::swap(size[1], size[2]);
  return weight.view(size).transpose(1, 2).contiguous();
}

}  // namespace

TORCH_LIBRARY_IMPL(conv2affine, CPU, m) {
  m.impl("dense_adjoint", static_cast<DenseAdjoint*>(&dense_adjoint_cpu));
  m.impl("sparse_adjoint", static_cast<SparseAdjoint*>(&sparse_adjoint_cpu));
}

}  // namespace conv2affine
