// The memory pages of a dense matrix: in which of them weights lie.
#pragma once

#include "convolution.h"

namespace conv2affine {

// Up to this size malloc usually returns resident memory: glibc keeps freed blocks of up to 32 MiB, unless they come to
// twice as much together.
inline constexpr int64_t kLarge = int64_t{16} << 20;

// How many of the small pages of a result are written: so few that huge pages cost more than they save, a share, or so
// many that all of them may as well be put in place.
enum class Touched { kFew, kSome, kAll };
Touched touched_pages(const Convolution& conv, int64_t itemsize);

// Bytes of a dense matrix of that many rows that are in memory at most once it is filled: with few touched pages,
// those of the pages in which weights lie (an estimate), else all.
int64_t resident_bytes(const Convolution& conv, int64_t rows, int64_t itemsize);

}  // namespace conv2affine
