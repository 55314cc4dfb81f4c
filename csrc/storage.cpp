#include "storage.h"

#include <c10/util/Exception.h>

#include <cstdint>

namespace conv2affine {

void check_storage(const char* name, const at::Tensor& tensor) {
  if (tensor.numel() == 0) return;
  int64_t elements = tensor.storage_offset() + 1;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) elements += (tensor.size(axis) - 1) * tensor.stride(axis);
  const auto needed = static_cast<size_t>(elements) * tensor.element_size();
  const size_t there = tensor.storage().nbytes();
  TORCH_CHECK_VALUE(needed <= there, name, " must have a storage of at least ", needed, " bytes, got ", there,
                    ": its memory was freed or shrunk; load its elements again");
}

}  // namespace conv2affine
