#include "bias.h"

#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(conv2affine, m) {
  m.def("bias(Tensor bias, SymInt outputs) -> Tensor", {at::Tag::pt2_compliant_tag});
}
