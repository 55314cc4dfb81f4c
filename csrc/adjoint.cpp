#include "adjoint.h"

#include <torch/library.h>

namespace conv2affine {

void check_weight_bytes(at::IntArrayRef weight_size, const at::Tensor& entries) {
  checked_product({c10::multiply_integers(weight_size), static_cast<int64_t>(entries.element_size())},
                  "bytes of the weight");
}

}  // namespace conv2affine

TORCH_LIBRARY_FRAGMENT(conv2affine, m) {
  m.def(
      "dense_adjoint(Tensor matrix, SymInt[] weight_size, SymInt[] geometry, str padding_mode, bool transposed, SymInt "
      "row_start, SymInt row_stop) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "sparse_adjoint(Tensor values, SymInt[] weight_size, SymInt[] geometry, str padding_mode, bool transposed, "
      "SymInt "
      "row_start, SymInt row_stop, bool by_columns) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
