// Memory for results: zeroed, and not written before it is filled.
#pragma once

#include <ATen/core/Tensor.h>

#include "convolution.h"

namespace conv2affine {

// Returns a contiguous CPU tensor of zeros, 64-byte aligned, an ordinary one in every respect.
// Small ones are torch's own; large ones are anonymous memory fresh from the system, which is zero already and has no
// page in place before it is first touched. `huge_pages` asks for pages of 2 MiB: 512 times fewer page faults, but 2
// MiB of memory for each touched byte. Where the system has or grants no such memory, at::zeros serves.
at::Tensor zeros(at::IntArrayRef sizes, const at::TensorOptions& options, bool huge_pages);

// The same for memory that will be written from end to end: its content is undefined.
at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);

// Share of the small pages (4 KiB) of a dense matrix in which weights lie, from 0 to 1; an estimate.
double touched_share(const Convolution& conv, int64_t itemsize);

// Whether huge pages are worth it for a dense matrix: so many small pages would be touched that they cost more time.
bool wants_huge_pages(const Convolution& conv, int64_t itemsize);

}  // namespace conv2affine
