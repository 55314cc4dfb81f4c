#include "sparse.h"

#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(conv2affine, m) {
  m.def(
      "csr(Tensor weight, SymInt[] geometry, str rule, SymInt row_start, SymInt row_stop, ScalarType index_dtype, "
      "bool transpose) -> (Tensor crow, Tensor col, Tensor values)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "coo(Tensor weight, SymInt[] geometry, str rule, SymInt row_start, SymInt row_stop) -> (Tensor indices, Tensor "
      "values)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "values(Tensor weight, SymInt[] geometry, str rule, SymInt row_start, SymInt row_stop, bool transpose) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
