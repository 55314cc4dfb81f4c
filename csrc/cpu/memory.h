// Memory for results: zeroed, and not written before it is filled.
#pragma once

#include <ATen/core/Tensor.h>

namespace conv2affine {

// Returns a contiguous CPU tensor of zeros, 64-byte aligned, an ordinary one in every respect.
// Small ones are torch's own; large ones are anonymous memory fresh from the system, which is zero already and has no
// page in place before it is first touched. `huge_pages` asks for pages of 2 MiB: 512 times fewer page faults, but 2
// MiB of memory for each touched byte. Where the system has or grants no such memory, at::zeros serves.
at::Tensor zeros(at::IntArrayRef sizes, const at::TensorOptions& options, bool huge_pages);

// The same for memory that will be written from end to end: its content is undefined.
at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);

}  // namespace conv2affine
