#include "rows.h"

#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>

#include <algorithm>

#include "no_memory.h"

namespace conv2affine {

Position MatrixRows::position(int64_t row) const {
  const auto& [axis1, axis2, axis3] = conv.axes;
  const int64_t line = row / axis3.output, plane = line / axis2.output, co = plane / axis1.output;
  return {co, plane - co * axis1.output, line - plane * axis2.output, row - line * axis3.output};
}

int64_t MatrixRows::nnz_before(int64_t row) const {
  const auto [co, o1, o2, o3] = position(row);
  const auto along = [&](int axis, int64_t o) {
    return Counts{taps[axis].nnz_before(o), taps[axis].nnz_of(taps[axis][o].pattern), taps[axis].nnz()};
  };
  return conv.in_per_group * conv2affine::nnz_before(co, along(0, o1), along(1, o2), along(2, o3));
}

MatrixRows check_rows(at::IntArrayRef weight_size, at::IntArrayRef geometry, std::string_view padding_mode,
                      bool transposed, int64_t row_start, int64_t row_stop, bool by_columns) {
  const Convolution conv = check_convolution(weight_size, geometry, padding_mode, transposed);
  const int64_t rows = by_columns ? conv.cols() : conv.rows();
  TORCH_CHECK_VALUE(0 <= row_start && row_start <= row_stop && row_stop <= rows, "rows [", row_start, ", ", row_stop,
                    ") must be a range within the ", rows, " rows of the matrix");
  const auto& [axis1, axis2, axis3] = conv.axes;
  return with_no_memory([&]() -> MatrixRows {
    if (!by_columns) return {conv, {AxisTaps(axis1), AxisTaps(axis2), AxisTaps(axis3)}, row_start, row_stop, false};
    return {conv.transposed(),
            {AxisTaps::transposed(axis1), AxisTaps::transposed(axis2), AxisTaps::transposed(axis3)},
            row_start,
            row_stop,
            true};
  });
}

void check_weight_bytes(at::IntArrayRef weight_size, int64_t itemsize) {
  checked_product({c10::multiply_integers(weight_size), itemsize}, "bytes of the weight");
}

void check_bytes(const MatrixRows& rows, int64_t nnz, int64_t itemsize) {
  // Two indices for each entry, and room for the last row start.
  checked_product({nnz, std::max<int64_t>(16, itemsize)}, "bytes of the sparse matrix");
  checked_product({rows.count(), 16}, "bytes of the row starts");
}

void check_index_dtype(at::ScalarType index_dtype, int64_t nnz, int64_t rows, int64_t cols) {
  TORCH_CHECK_VALUE(index_dtype == at::kInt || index_dtype == at::kLong, "index_dtype (", index_dtype,
                    ") must be int32 or int64");
  TORCH_CHECK_VALUE(index_dtype == at::kLong || std::max({nnz, rows, cols}) <= INT32_MAX,
                    "index_dtype int32 counts to ", INT32_MAX, ", too few for ", nnz, " entries in ", rows,
                    " rows and ", cols, " columns; use int64, or a block of rows");
}

at::Tensor weight_of_rows(const at::Tensor& weight, const MatrixRows& rows) {
  return (rows.by_columns ? weight.transpose(1, 2) : weight).contiguous();
}

}  // namespace conv2affine
