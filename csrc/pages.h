// The memory pages of a dense matrix: in which of them weights lie.
#pragma once

#include "convolution.h"

namespace conv2affine {

// Up to this size malloc usually returns resident memory: glibc keeps freed blocks of up to 32 MiB, unless they come to
// twice as much together.
inline constexpr int64_t kLarge = int64_t{16} << 20;

// Whether huge pages are worth it for a dense matrix: so many small pages would be touched that they cost more time.
bool wants_huge_pages(const Convolution& conv, int64_t itemsize);

// Bytes of a dense matrix of that many rows that are in memory once it is filled: with small pages, those of the pages
// in which weights lie (an estimate), else all.
int64_t resident_bytes(const Convolution& conv, int64_t rows, int64_t itemsize);

}  // namespace conv2affine
