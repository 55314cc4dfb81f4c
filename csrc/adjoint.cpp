#include "adjoint.h"

#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(conv2affine, m) {
  m.def(
      "dense_adjoint(Tensor matrix, SymInt[] weight_size, SymInt[] geometry, str padding_mode, bool transposed, SymInt "
      "row_start, SymInt row_stop) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "sparse_adjoint(Tensor values, SymInt[] weight_size, SymInt[] geometry, str padding_mode, bool transposed, "
      "SymInt row_start, SymInt row_stop, bool by_columns) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
