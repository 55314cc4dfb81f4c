#include "dense.h"

#include <torch/library.h>

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/interruptible.h"
#include "cpu/memory.h"
#include "cpu/row_walker.h"
#include "pages.h"

namespace conv2affine {

namespace {

// Writes rows [begin, end) of the matrix into memory that holds zeros; `matrix` points at row `begin`, where
// the walker is.
template <typename scalar_t>
void fill_rows(const MatrixRows& rows, const scalar_t* weight, scalar_t* matrix, RowWalker<int64_t>& walker,
               int64_t begin, int64_t end) {
  const int64_t cols = rows.conv.cols(), kernel = rows.conv.in_per_group * rows.conv.taps();
  for (int64_t r = begin; r < end;) {
    const RowRun run = walker.next(end - r);
    const int64_t filled = run.pattern.size() == 0 ? 0 : run.rows;  // rows without entries may be many
    for (int64_t n = 0; n < filled; ++n) {
      scalar_t* to = matrix + run.offset + n * (cols + run.step);
      run.pattern.for_each(weight + run.co * kernel,
                           [=](int64_t, int64_t column, scalar_t value) { to[column] = value; });
    }
    matrix += run.rows * cols;
    r += run.rows;
  }
}

// Cost of a row, in entries: the first touch of a page of memory takes as long as writing 512 of them.
int64_t entries_of_a_row(const Convolution& conv, int64_t itemsize) {
  constexpr int64_t kPageBytes = 4096, kPageEntries = 512;
  const int64_t kernel = conv.in_per_group * conv.taps();
  return std::max(kernel, std::min(kernel, conv.cols() / (kPageBytes / itemsize)) * kPageEntries);
}

at::Tensor dense_cpu(const at::Tensor& weight, const MatrixRows& rows) {
  const int64_t cols = rows.conv.cols();
  const Touched touched = touched_pages(rows.conv, static_cast<int64_t>(weight.element_size()));
  const at::Tensor matrix = zeros({rows.count(), cols}, weight.options(), touched);
  // A row that is longer than a huge page may leave some of them untouched.
  const bool place = touched == Touched::kAll || cols * static_cast<int64_t>(weight.element_size()) <= kHugePage;
  dispatch(weight.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const scalar_t* from = read<scalar_t>(weight);
    scalar_t* to = write<scalar_t>(matrix);
    const int64_t entries = entries_of_a_row(rows.conv, sizeof(scalar_t));
    interruptible_for(rows.start, rows.stop, entries, [&](int64_t begin, int64_t end) {
      RowWalker<int64_t> walker(rows, begin);
      in_blocks(begin, end, cols * sizeof(scalar_t), [&](int64_t first, int64_t last) {
        const bool has_entries = rows.nnz_before(first) < rows.nnz_before(last);  // not so in wide padding
        if (place && has_entries) place_pages(matrix, (first - rows.start) * cols, (last - rows.start) * cols);
        fill_rows(rows, from, to + (first - rows.start) * cols, walker, first, last);
      });
    });
  });
  return matrix;
}

}  // namespace

TORCH_LIBRARY_IMPL(conv2affine, CPU, m) { m.impl("dense", &dense<dense_cpu>); }

}  // namespace conv2affine
