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

// Whether huge pages are worth it for a dense matrix: so many small pages would be touched that they cost more time.
bool wants_huge_pages(const Convolution& conv, int64_t itemsize);

// Bytes of a dense matrix of that many rows that are in memory once it is filled: with small pages, those of the pages
// in which weights lie (an estimate), else all.
int64_t resident_bytes(const Convolution& conv, int64_t rows, int64_t itemsize);

}  // namespace conv2affine
