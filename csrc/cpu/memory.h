// Memory for results: zeroed, and not written before it is filled.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "pages.h"

namespace conv2affine {

// Note [Cold memory]
//
// A page is backed when it is first touched, and what that costs differs by two orders of magnitude. A huge page (2
// MiB) takes 0.1 to 0.2 ms, far less than the 512 small pages in its place, if the machine has the memory. A virtual
// machine that gives free memory back may have to ask its host for it: then a huge page takes 4 ms and more, while
// small pages mostly come from fragments that were never given back. A machine without free huge pages has to move
// memory to make one. No probe at the start tells, for the first pages are often there and later ones not. So:
//
//     few pages touched    small pages, as they are touched
//     some                 huge pages, one by one, until they have lost 8 ms, or less where the result is small; then
//                          small pages, as they are touched
//     all                  the same, but these small pages are put in place many at a time

// Returns a contiguous CPU tensor of zeros, 64-byte aligned, an ordinary one in every respect.
// Small ones are torch's own; large ones are anonymous memory fresh from the system, which is zero already and has no
// page in place before it is first touched. Where the system has or grants no such memory, at::zeros serves.
at::Tensor zeros(at::IntArrayRef sizes, const at::TensorOptions& options, Touched touched);

// The same for memory that will be written from end to end: its content is undefined.
at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);

// Bytes of a huge page; tensors from here begin with one.
inline constexpr int64_t kHugePage = int64_t{2} << 20;

// Puts pages in place before elements [begin, end) of a tensor are written; Note [Cold memory]. It changes no content,
// is right to leave out, and several threads may call it for one tensor. Tensors from elsewhere are left as they are.
void place_pages(const at::Tensor& tensor, int64_t begin, int64_t end);

// Calls f(first, last) for blocks of [begin, end) of about half a MiB: pages that were put in place before a block are
// in the second-level cache, all zero, when it is written.
template <typename F>
void in_blocks(int64_t begin, int64_t end, int64_t bytes, const F& f) {
  constexpr int64_t kBlockBytes = int64_t{1} << 19;
  const int64_t step = std::max<int64_t>(1, kBlockBytes / std::max<int64_t>(1, bytes));
  for (int64_t first = begin; first < end; first += step) f(first, std::min(end, first + step));
}

// Limit of the seconds lost by slow huge pages, net of what quick ones saved, for results of `kLostPageBytes` or more.
// Smaller results have fewer pages to win them back, and a limit in proportion to their size. In a large one, two pages
// that the host had to find are no reason to give up the other huge pages. Tests set it.
inline double lost_page_seconds = 8e-3;
inline constexpr int64_t kLostPageBytes = int64_t{160} << 20;

}  // namespace conv2affine
