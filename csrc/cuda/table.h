// From checked arguments to what a kernel takes.
#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/kernels.h"
#include "rows.h"

namespace conv2affine {

// The stream that PyTorch works on now, as kernels.h takes it.
void* current_stream();

// What is no floating-point type is an integer of its size: it is copied, or added up where check_sums() allows it.
Dtype dtype_of(at::ScalarType type);

// The same for an adjoint, which adds up. Throws NotImplementedError for what is no floating-point type; `op` is named
// in the message.
Dtype float_dtype_of(at::ScalarType type, const char* op);

// A RowTable, and the memory that it points to: keep it until the kernel is launched. PyTorch reuses freed memory in
// the order of the stream, so that the kernel need not have run.
struct UploadedTable {
  RowTable rows;
  at::Tensor memory;
};

// `options` have the device; the current stream must be one of it.
UploadedTable upload(const MatrixRows& rows, const at::TensorOptions& options);

}  // namespace conv2affine
