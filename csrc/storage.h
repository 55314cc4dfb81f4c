// The check that the memory of a tensor is there.
#pragma once

#include <ATen/core/Tensor.h>

namespace conv2affine {

// Throws ValueError unless the storage of a tensor holds all of its elements. PyTorch lets users shrink the storage of
// a tensor that is in use (`untyped_storage().resize_(0)`), and kernels read through plain pointers.
void check_storage(const char* name, const at::Tensor& tensor);

}  // namespace conv2affine
