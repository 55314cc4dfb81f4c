#include "sparse.h"

#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>

namespace conv2affine {

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

}  // namespace conv2affine

TORCH_LIBRARY_FRAGMENT(conv2affine, m) {
  m.def(
      "csr(Tensor weight, SymInt[] geometry, str padding_mode, bool transposed, SymInt row_start, SymInt row_stop, "
      "bool by_columns, ScalarType index_dtype) -> (Tensor crow, Tensor col, Tensor values)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "coo(Tensor weight, SymInt[] geometry, str padding_mode, bool transposed, SymInt row_start, SymInt row_stop) -> "
      "(Tensor indices, Tensor values)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "values(Tensor weight, SymInt[] geometry, str padding_mode, bool transposed, SymInt row_start, SymInt row_stop, "
      "bool by_columns) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
