#include "sparse.h"

#include <torch/library.h>

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
