// Rows of a matrix: the arguments that all operators share, checked once, and the closed form that counts entries.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <array>
#include <cstdint>
#include <string_view>

#include "convolution.h"
#include "taps.h"

namespace conv2affine {

// A row by its output channel and its output coordinates.
struct Position {
  int64_t co, o1, o2, o3;

  // Advances by `rows`, at most to the first row of the next plane.
  void advance(const Convolution& conv, int64_t rows) {
    o3 += rows;
    if (o3 < conv.axes[2].output) return;
    o2 += o3 / conv.axes[2].output;
    o3 %= conv.axes[2].output;
    if (o2 < conv.axes[1].output) return;
    o2 = 0;
    if (++o1 < conv.axes[0].output) return;
    o1 = 0;
    ++co;
  }
};

// Rows [start, stop) of a matrix, or of its transpose, whose rows are input elements: the matrix by columns.
struct MatrixRows {
  Convolution conv;              // of the matrix whose rows these are
  std::array<AxisTaps, 3> taps;  // one table per axis
  int64_t start, stop;
  bool by_columns;

  int64_t count() const { return stop - start; }
  Position position(int64_t row) const;

  // nnz of the rows before `row`, which may be any from 0 to conv.rows(). In closed form, so that every thread knows
  // where its rows start in a sparse matrix.
  int64_t nnz_before(int64_t row) const;
  int64_t nnz() const { return nnz_before(stop) - nnz_before(start); }

  // Maximum number of weights that add up in one entry.
  int64_t max_taps() const { return taps[0].max_taps() * taps[1].max_taps() * taps[2].max_taps(); }
};

// Throws ValueError unless 0 <= row_start <= row_stop <= rows of the matrix, or columns, and what check_convolution()
// throws.
MatrixRows check_rows(at::IntArrayRef weight_size, at::IntArrayRef geometry, std::string_view padding_mode,
                      bool transposed, int64_t row_start, int64_t row_stop, bool by_columns = false);

// Throws ValueError unless the bytes of such a weight fit into 64 bits.
void check_weight_bytes(at::IntArrayRef weight_size, int64_t itemsize);

// Throws ValueError unless the bytes of a sparse matrix fit into 64 bits, with indices of int64.
void check_bytes(const MatrixRows& rows, int64_t nnz, int64_t itemsize);

// Throws ValueError unless the dtype is int32 or int64 and counts that many entries, rows and columns.
void check_index_dtype(at::ScalarType index_dtype, int64_t nnz, int64_t rows, int64_t cols);

// The weight as these rows see it, contiguous: (groups, out/group, in/group, K_1, ..., K_D), with out and in exchanged
// by columns.
at::Tensor weight_of_rows(const at::Tensor& weight, const MatrixRows& rows);

}  // namespace conv2affine
