#include "dense.h"

#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(conv2affine, m) {
  m.def(
      "dense(Tensor weight, SymInt[] geometry, str padding_mode, bool transposed, SymInt row_start, SymInt row_stop) "
      "-> Tensor",
      {at::Tag::pt2_compliant_tag});
}
