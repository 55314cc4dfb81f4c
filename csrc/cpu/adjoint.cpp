#include "adjoint.h"

#include <ATen/Dispatch_v2.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

#include "convolution.h"
#include "cpu/wide.h"
#include "rows.h"

namespace conv2affine {

namespace {

// What weights are summed in: half types in float32, integers in 64 bits.
template <typename scalar_t>
using acc_t = std::conditional_t<std::is_integral_v<scalar_t>, int64_t, at::opmath_type<scalar_t>>;

// sums[e] += entry e of each row.
template <typename acc_t, typename scalar_t>
[[gnu::always_inline]] inline void add_rows_inline(acc_t* __restrict sums, const scalar_t* __restrict row,
                                                   int64_t entries, int64_t rows) {
  for (; rows > 0; --rows, row += entries) {
    for (int64_t e = 0; e < entries; ++e) sums[e] += static_cast<acc_t>(row[e]);
  }
}

template <typename acc_t, typename scalar_t>
void add_rows(acc_t* sums, const scalar_t* row, int64_t entries, int64_t rows) {
  add_rows_inline(sums, row, entries, rows);
}

CONV2AFFINE_WIDE void add_rows(float* sums, const float* row, int64_t entries, int64_t rows) {
  add_rows_inline(sums, row, entries, rows);
}

CONV2AFFINE_WIDE void add_rows(double* sums, const double* row, int64_t entries, int64_t rows) {
  add_rows_inline(sums, row, entries, rows);
}

// The entries of a dense matrix, from one row on.
template <typename scalar_t>
struct DenseSource {
  const scalar_t* row;
  int64_t row_stride, column_stride;

  void add(const Run<int64_t>& run, acc_t<scalar_t>* sums) {
    const int64_t* columns = run.pattern.columns.data();
    const int64_t entries = run.pattern.size();
    for (int64_t n = 0; n < run.rows; ++n, row += row_stride) {
      const scalar_t* from = row + (run.shift + n * run.step) * column_stride;
      for (int64_t e = 0; e < entries; ++e) sums[e] += static_cast<acc_t<scalar_t>>(from[columns[e] * column_stride]);
    }
  }
};

// The entries of a sparse matrix, which lie one behind the other.
template <typename scalar_t>
struct SparseSource {
  const scalar_t* values;

  void add(const Run<int64_t>& run, acc_t<scalar_t>* sums) {
    constexpr int64_t kLanes = 64;
    const int64_t entries = run.pattern.size();
    int64_t rows = run.rows;
    if (entries > 0 && 2 * entries <= kLanes && rows >= 8) {
      // Short rows: several side by side as if they were one, in lanes of their own.
      const int64_t side = kLanes / entries, lines = rows / side;
      std::array<acc_t<scalar_t>, kLanes> lanes{};
      add_rows(lanes.data(), values, side * entries, lines);
      add_rows(sums, lanes.data(), entries, side);
      values += lines * side * entries;
      rows -= lines * side;
    }
    add_rows(sums, values, entries, rows);
    values += rows * entries;
  }
};

// Sums by entry of a pattern, which go to the weights when all rows of the pattern are in: whether rows of one pattern
// follow each other or not, as in a transposed convolution, each is one long loop.
template <typename acc_t>
class PatternSums {
 public:
  explicit PatternSums(const Rows<int64_t>& rows)
      : keeps_all_(rows.keeps_all()), sums_(keeps_all_ ? rows.slots() : 1) {}

  // Adds rows [begin, end), all of one output channel, to the weights of that channel.
  template <typename Source>
  void add_channel(Rows<int64_t>& rows, Source& source, int64_t begin, int64_t end, acc_t* weights) {
    for (int64_t r = begin; r < end;) {
      const Run run = rows.next(end - r);
      const RowPattern<int64_t>& pattern = run.pattern;
      std::vector<acc_t>& sums = sums_[keeps_all_ ? pattern.id : 0];
      if (!pattern.whole && pattern.size() > 0 && sums.empty()) {
        sums.assign(pattern.size(), acc_t(0));
        open_.push_back(&pattern);
      }
      source.add(run, pattern.whole ? weights : sums.data());
      if (!keeps_all_) close(weights);
      r += run.rows;
    }
    close(weights);
  }

 private:
  void close(acc_t* weights) {
    for (const RowPattern<int64_t>* pattern : open_) {
      std::vector<acc_t>& sums = sums_[keeps_all_ ? pattern->id : 0];
      const int64_t* taps = pattern->taps.data();
      for (int64_t e = 0, t = 0; e < pattern->size(); ++e) {
        const int64_t end = pattern->ends.empty() ? e + 1 : pattern->ends[e];
        while (t < end) weights[taps[t++]] += sums[e];
      }
      sums.clear();
    }
    open_.clear();
  }

  bool keeps_all_;
  std::vector<std::vector<acc_t>> sums_;
  std::vector<const RowPattern<int64_t>*> open_;  // those with sums
};

// Where the parts begin that are summed for themselves, and then in order: the parts of an output channel follow from
// the sizes alone, so that the sum does not depend on the number of threads. Only few channels are divided.
std::vector<int64_t> parts_of(const Convolution& conv, int64_t row_start, int64_t row_stop) {
  constexpr int64_t kParts = 32;
  const int64_t channels = conv.groups * conv.out_per_group, outputs = conv.outputs();
  const int64_t parts = std::min((kParts + channels - 1) / channels, outputs);
  std::vector<int64_t> starts = {row_start};
  for (int64_t co = row_start / outputs; co * outputs < row_stop; ++co) {
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t start = co * outputs + outputs / parts * part;
      if (start > row_start && start < row_stop) starts.push_back(start);
    }
  }
  starts.push_back(row_stop);
  return starts;
}

// `source_at` gives the source that begins at a row.
template <typename scalar_t, typename SourceAt>
at::Tensor adjoint(const Convolution& conv, const Taps& taps, const at::TensorOptions& options, int64_t row_start,
                   int64_t row_stop, const SourceAt& source_at) {
  using acc = acc_t<scalar_t>;
  const int64_t kernel = conv.in_per_group * conv.taps(), channels = conv.groups * conv.out_per_group;
  const std::vector<int64_t> starts = parts_of(conv, row_start, row_stop);
  const int64_t parts = row_start < row_stop ? starts.size() - 1 : 0;
  checked_product({parts, kernel, static_cast<int64_t>(sizeof(acc))}, "bytes of the sums");
  std::vector<acc> partial(parts * kernel);
  const int64_t rows_of_a_part = parts == 0 ? 1 : (row_stop - row_start + parts - 1) / parts;
  const int64_t grain = std::max<int64_t>(1, kGrainEntries / (rows_of_a_part * kernel));
  at::parallel_for(0, parts, grain, [&](int64_t first, int64_t last) {
    Rows<int64_t> rows(conv, taps, starts[first]);
    auto source = source_at(starts[first]);
    PatternSums<acc> sums(rows);
    for (int64_t part = first; part < last; ++part) {
      sums.add_channel(rows, source, starts[part], starts[part + 1], partial.data() + part * kernel);
    }
  });
  const at::Tensor weight = at::empty({channels, kernel}, options);
  scalar_t* to = weight.mutable_data_ptr<scalar_t>();
  std::vector<acc> sum(kernel);
  for (int64_t co = 0, part = 0; co < channels; ++co) {
    sum.assign(kernel, acc(0));
    for (; part < parts && starts[part] < (co + 1) * conv.outputs(); ++part) {
      for (int64_t k = 0; k < kernel; ++k) sum[k] += partial[part * kernel + k];
    }
    for (int64_t k = 0; k < kernel; ++k) to[co * kernel + k] = static_cast<scalar_t>(sum[k]);
  }
  return weight;
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
                   const int64_t row_stride = resolved.stride(0), column_stride = resolved.stride(1);
                   weight = adjoint<scalar_t>(conv, taps, matrix.options(), row_start, row_stop, [&](int64_t row) {
                     return DenseSource<scalar_t>{from + (row - row_start) * row_stride, row_stride, column_stride};
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
