#include "sparse.h"

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/interruptible.h"
#include "cpu/memory.h"
#include "cpu/multiversioned.h"
#include "cpu/row_walker.h"

namespace conv2affine {

namespace {

// Maximum number of entries of a line that is copied with its repetitions: a longer one pushes its own start out of the
// first-level cache.
constexpr int64_t kLineEntries = 4096;

// SparseArrays as pointers.
template <typename scalar_t, typename index_t>
struct Pointers {
  index_t *crow, *row, *col;
  scalar_t* values;
};

CONV2AFFINE_MULTIVERSIONED void add(int32_t* to, const int32_t* from, int64_t count, int32_t offset) {
  for (int64_t e = 0; e < count; ++e) to[e] = from[e] + offset;
}

CONV2AFFINE_MULTIVERSIONED void add(int64_t* to, const int64_t* from, int64_t count, int64_t offset) {
  for (int64_t e = 0; e < count; ++e) to[e] = from[e] + offset;
}

// Fills `times` repetitions of n entries, of which the first is in place: copy(to, from, count, r) writes the entries
// that are r repetitions after `from`. In blocks that double up to what fits in the first-level cache: long copies,
// however small n is.
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

// Each repetition is the one before plus `step`.
template <typename index_t>
void repeat_shifted(index_t* first, int64_t n, int64_t times, int64_t step) {
  repeat(first, n, times, [=](index_t* to, const index_t* from, int64_t count, int64_t repetitions) {
    add(to, from, count, static_cast<index_t>(repetitions * step));
  });
}

// Writes rows [begin, end) of the matrix, where the walker is; `to` points at the first entry of rows.start.
template <typename scalar_t, typename index_t>
void fill_rows(const MatrixRows& rows, const scalar_t* weight, Pointers<scalar_t, index_t> to,
               RowWalker<index_t>& walker, int64_t begin, int64_t end) {
  const int64_t kernel = rows.conv.in_per_group * rows.conv.taps(), outputs = rows.conv.axes[2].output;
  int64_t entry = rows.nnz_before(begin) - rows.nnz_before(rows.start);
  for (int64_t r = begin; r < end;) {
    const AxisTaps::Repeat lines = walker.lines(end - r);
    const int64_t first_row = r - rows.start, first_entry = entry;
    do {
      const RowRun run = walker.next(end - r);
      const int64_t row = r - rows.start, nnz = run.pattern.size();
      if (to.crow) {
        to.crow[row] = static_cast<index_t>(entry);
        repeat_shifted(to.crow + row, 1, run.rows, nnz);
      }
      if (to.row) {
        std::fill_n(to.row + entry, nnz, static_cast<index_t>(row));
        repeat_shifted(to.row + entry, nnz, run.rows, 1);
      }
      if (to.col) {
        index_t* col = to.col + entry;
        const index_t offset = static_cast<index_t>(run.offset);
        run.pattern.for_each_column([=](int64_t e, int64_t column) { col[e] = static_cast<index_t>(column) + offset; });
        repeat_shifted(col, nnz, run.rows, run.step);
      }
      scalar_t* values = to.values + entry;
      run.pattern.for_each(weight + run.co * kernel, [=](int64_t e, int64_t, scalar_t value) { values[e] = value; });
      repeat(values, nnz, run.rows);
      entry += run.rows * nnz;
      r += run.rows;
    } while (r < end && r % outputs > 0);
    const int64_t nnz = entry - first_entry;
    if (lines.count < 2 || nnz > kLineEntries) continue;
    if (to.crow) repeat_shifted(to.crow + first_row, outputs, lines.count, nnz);
    if (to.row) repeat_shifted(to.row + first_entry, nnz, lines.count, outputs);
    if (to.col) repeat_shifted(to.col + first_entry, nnz, lines.count, lines.step);
    repeat(to.values + first_entry, nnz, lines.count);
    walker.skip((lines.count - 1) * outputs);
    entry += (lines.count - 1) * nnz;
    r += (lines.count - 1) * outputs;
  }
}

// Puts the pages in place that rows [begin, end) are written to.
void place_rows(const MatrixRows& rows, const SparseArrays& to, int64_t begin, int64_t end) {
  const int64_t before = rows.nnz_before(rows.start);
  const int64_t first = rows.nnz_before(begin) - before, last = rows.nnz_before(end) - before;
  if (to.crow.defined()) place_pages(to.crow, begin - rows.start, end - rows.start);
  for (const at::Tensor& array : {to.row, to.col, to.values}) {
    if (array.defined()) place_pages(array, first, last);
  }
}

void sparse_cpu(const at::Tensor& weight, const MatrixRows& rows, const SparseArrays& to) {
  AT_DISPATCH_INDEX_TYPES(to.col.defined() ? to.col.scalar_type() : at::kLong, "conv2affine::sparse", [&] {
    const auto indices = [](const at::Tensor& array) { return array.defined() ? write<index_t>(array) : nullptr; };
    dispatch(weight.scalar_type(), [&](auto zero) {
      using scalar_t = decltype(zero);
      const scalar_t* from = read<scalar_t>(weight);
      const Pointers<scalar_t, index_t> pointers{indices(to.crow), indices(to.row), indices(to.col),
                                                 write<scalar_t>(to.values)};
      const int64_t kernel = rows.conv.in_per_group * rows.conv.taps();
      interruptible_for(rows.start, rows.stop, kernel, [&](int64_t begin, int64_t end) {
        RowWalker<index_t> walker(rows, begin);
        in_blocks(begin, end, kernel * (sizeof(scalar_t) + sizeof(index_t)), [&](int64_t first, int64_t last) {
          place_rows(rows, to, first, last);
          fill_rows(rows, from, pointers, walker, first, last);
        });
      });
    });
    if (to.crow.defined()) indices(to.crow)[rows.count()] = static_cast<index_t>(to.values.numel());
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(conv2affine, CPU, m) {
  m.impl("csr", &csr<empty, sparse_cpu>);
  m.impl("coo", &coo<empty, sparse_cpu>);
  m.impl("values", &values<empty, sparse_cpu>);
}

}  // namespace conv2affine
