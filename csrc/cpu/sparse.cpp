#include "sparse.h"

#include <ATen/Dispatch_v2.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "convolution.h"
#include "cpu/memory.h"
#include "cpu/wide.h"
#include "rows.h"

namespace conv2affine {

namespace {

// Where the parts of a sparse matrix go; what is null is left out. A CSR matrix has `crow`, a COO matrix the `row` of
// each entry.
template <typename scalar_t, typename index_t>
struct Entries {
  index_t* crow;
  index_t* row;
  index_t* col;
  scalar_t* values;
};

CONV2AFFINE_WIDE void add(int32_t* to, const int32_t* from, int64_t count, int32_t shift) {
  for (int64_t e = 0; e < count; ++e) to[e] = from[e] + shift;
}

CONV2AFFINE_WIDE void add(int64_t* to, const int64_t* from, int64_t count, int64_t shift) {
  for (int64_t e = 0; e < count; ++e) to[e] = from[e] + shift;
}

// Repeats n entries `times` times in all, the first of them in place: copy(to, from, count, r) writes what is r
// repetitions behind `from`. In blocks that double up to what stays in the first-level cache: long copies, however few
// the entries are.
template <typename T, typename Copy>
void repeat(T* first, int64_t n, int64_t times, const Copy& copy) {
  constexpr int64_t kBlock = 2048;
  if (n == 0) return;
  for (int64_t done = 1; done < times;) {
    const int64_t block = std::min({done, std::max<int64_t>(1, kBlock / n), times - done});
    copy(first + done * n, first + (done - block) * n, block * n, block);
    done += block;
  }
}

template <typename T>
void repeat(T* first, int64_t n, int64_t times) {
  repeat(first, n, times, [](T* to, const T* from, int64_t count, int64_t) { std::copy_n(from, count, to); });
}

// Each repetition `step` more than the one before.
template <typename index_t>
void repeat_moved(index_t* first, int64_t n, int64_t times, int64_t step) {
  repeat(first, n, times, [=](index_t* to, const index_t* from, int64_t count, int64_t behind) {
    add(to, from, count, static_cast<index_t>(behind * step));
  });
}

// Writes rows [begin, end) of the matrix; `to` points at where they begin, `weight` is contiguous.
template <typename scalar_t, typename index_t>
void fill_rows(const Convolution& conv, const Taps& taps, const scalar_t* weight, Entries<scalar_t, index_t> to,
               int64_t begin, int64_t end, int64_t row_start) {
  const int64_t kernel = conv.in_per_group * conv.taps();
  int64_t entry = entries_before(conv, taps, begin) - entries_before(conv, taps, row_start);
  Rows<index_t> rows(conv, taps, begin);
  const int64_t outputs = conv.axes[2].output;
  for (int64_t r = begin; r < end;) {
    const int64_t lines = rows.lines(end - r), first_row = r, first_entry = entry;
    do {
      const Run run = rows.next(end - r);
      const int64_t entries = run.pattern.size();
      if (to.crow) {
        to.crow[r - row_start] = static_cast<index_t>(entry);
        repeat_moved(to.crow + r - row_start, 1, run.rows, entries);
      }
      if (to.row) {
        std::fill_n(to.row + entry, entries, static_cast<index_t>(r - row_start));
        repeat_moved(to.row + entry, entries, run.rows, 1);
      }
      if (to.col) {
        index_t* col = to.col + entry;
        add(col, run.pattern.columns.data(), entries, static_cast<index_t>(run.shift));
        repeat_moved(col, entries, run.rows, run.step);
      }
      scalar_t* values = to.values + entry;
      run.pattern.for_each(weight + run.co * kernel, [=](int64_t e, scalar_t value) { values[e] = value; });
      repeat(values, entries, run.rows);
      entry += run.rows * entries;
      r += run.rows;
    } while (r < end && r % outputs > 0);
    const int64_t entries = entry - first_entry;
    if (lines < 2 || entries > kLineEntries) continue;
    if (to.crow) repeat_moved(to.crow + first_row - row_start, outputs, lines, entries);
    if (to.row) repeat_moved(to.row + first_entry, entries, lines, outputs);
    if (to.col) repeat_moved(to.col + first_entry, entries, lines, taps[1].step() * conv.axes[2].input);
    repeat(to.values + first_entry, entries, lines);
    rows.skip((lines - 1) * outputs);
    entry += (lines - 1) * entries;
    r += (lines - 1) * outputs;
  }
}

template <typename index_t>
void fill(const Convolution& conv, const Taps& taps, const at::Tensor& weight, index_t* crow, index_t* row,
          index_t* col, const at::Tensor& values, int64_t row_start, int64_t row_stop) {
  const at::Tensor weights = weight.contiguous();  // (groups, out/group, in/group, K_1, ..., K_D)
  AT_DISPATCH_V2(weight.scalar_type(), "conv2affine::sparse", AT_WRAP([&] {
                   const scalar_t* from = weights.const_data_ptr<scalar_t>();
                   const Entries<scalar_t, index_t> to{crow, row, col, values.mutable_data_ptr<scalar_t>()};
                   at::parallel_for(row_start, row_stop, grain_rows(conv), [&](int64_t begin, int64_t end) {
                     fill_rows(conv, taps, from, to, begin, end, row_start);
                   });
                 }),
                 AT_EXPAND(AT_ALL_TYPES), AT_EXPAND(AT_COMPLEX_TYPES), at::kHalf, at::kBFloat16);
}

// The checked arguments of an operator.
struct Checked {
  Convolution conv;
  Taps taps;
  at::Tensor weight;  // that of the transposed matrix, where it is transposed
  int64_t nnz;
};

Checked check(const at::Tensor& weight, at::IntArrayRef geometry, std::string_view rule, int64_t row_start,
              int64_t row_stop, bool transpose) {
  const auto [conv, taps] = make_sides(check_convolution(weight, geometry, rule), transpose);
  check_rows(row_start, row_stop, conv.rows());
  const int64_t nnz = entries_before(conv, taps, row_stop) - entries_before(conv, taps, row_start);
  checked_product({nnz, 2, std::max<int64_t>(8, weight.element_size())}, "bytes of the sparse matrix");
  return {conv, taps, transpose ? weight.transpose(1, 2) : weight, nnz};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> csr_cpu(const at::Tensor& weight, at::IntArrayRef geometry,
                                                       std::string_view rule, int64_t row_start, int64_t row_stop,
                                                       at::ScalarType index_dtype, bool transpose) {
  const Checked c = check(weight, geometry, rule, row_start, row_stop, transpose);
  check_index_dtype(index_dtype, c.nnz, row_stop - row_start, c.conv.cols());
  const at::TensorOptions indices = weight.options().dtype(index_dtype);
  const at::Tensor crow = empty({row_stop - row_start + 1}, indices), col = empty({c.nnz}, indices);
  const at::Tensor values = empty({c.nnz}, weight.options());
  AT_DISPATCH_INDEX_TYPES(index_dtype, "conv2affine::csr", [&] {
    index_t* starts = crow.mutable_data_ptr<index_t>();
    fill<index_t>(c.conv, c.taps, c.weight, starts, nullptr, col.mutable_data_ptr<index_t>(), values, row_start,
                  row_stop);
    starts[row_stop - row_start] = static_cast<index_t>(c.nnz);
  });
  return {crow, col, values};
}

std::tuple<at::Tensor, at::Tensor> coo_cpu(const at::Tensor& weight, at::IntArrayRef geometry, std::string_view rule,
                                           int64_t row_start, int64_t row_stop) {
  const Checked c = check(weight, geometry, rule, row_start, row_stop, /*transpose=*/false);
  const at::Tensor indices = empty({2, c.nnz}, weight.options().dtype(at::kLong));
  const at::Tensor values = empty({c.nnz}, weight.options());
  int64_t* rows = indices.mutable_data_ptr<int64_t>();
  fill<int64_t>(c.conv, c.taps, weight, nullptr, rows, rows + c.nnz, values, row_start, row_stop);
  return {indices, values};
}

at::Tensor values_cpu(const at::Tensor& weight, at::IntArrayRef geometry, std::string_view rule, int64_t row_start,
                      int64_t row_stop, bool transpose) {
  const Checked c = check(weight, geometry, rule, row_start, row_stop, transpose);
  const at::Tensor values = empty({c.nnz}, weight.options());
  fill<int64_t>(c.conv, c.taps, c.weight, nullptr, nullptr, nullptr, values, row_start, row_stop);
  return values;
}

}  // namespace

TORCH_LIBRARY_IMPL(conv2affine, CPU, m) {
  m.impl("csr", static_cast<Csr*>(&csr_cpu));
  m.impl("coo", static_cast<Coo*>(&coo_cpu));
  m.impl("values", static_cast<Values*>(&values_cpu));
}

}  // namespace conv2affine
