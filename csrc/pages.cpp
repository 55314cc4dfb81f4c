#include "pages.h"

#include <algorithm>
#include <array>

namespace conv2affine {

namespace {

constexpr double kPage = 4096;
// With two threads, huge pages take as long as a tenth of the small ones do, and unmap far sooner.
constexpr double kFewShare = 0.1;
// To put small pages in place many at a time costs 0.6 times as much a page as one by one, when they are touched.
constexpr double kAllShare = 0.6;

// Share of the small pages of a dense matrix in which weights lie, from 0 to 1.
double touched_share(const Convolution& conv, int64_t itemsize) {
  // From the weights of a kernel line outwards. What lies less than a page apart shares pages: it counts by the bytes
  // it spans, an unaligned span of n bytes being in 1 + n / page of them; what lies farther apart counts each for
  // itself.
  struct Level {
    double count, distance;
  };
  const auto& [axis1, axis2, axis3] = conv.axes;
  const auto step = [](const Axis& axis) { return static_cast<double>(axis.transposed ? 1 : axis.dilation); };
  const auto count = [](const Axis& axis) {
    const int64_t reads = axis.transposed ? 1 + (axis.kernel - 1) * axis.dilation / axis.stride : axis.kernel;
    return static_cast<double>(std::min(reads, axis.input));
  };
  const double item = static_cast<double>(itemsize), line = item * static_cast<double>(axis3.input);
  const double plane = line * static_cast<double>(axis2.input), row = item * static_cast<double>(conv.cols());
  const double rows = static_cast<double>(conv.rows());
  const std::array<Level, 5> levels = {
      {{count(axis3), item * step(axis3)},
       {count(axis2), line * step(axis2)},
       {count(axis1), plane * step(axis1)},
       {static_cast<double>(conv.in_per_group), item * static_cast<double>(conv.inputs())},
       {rows, row}}};
  double pages = 1, span = item;
  for (const auto& [n, distance] : levels) {
    const double total = (n - 1) * distance + span;
    pages = distance < kPage ? 1 + total / kPage : n * pages;
    span = total;
  }
  return std::min(1.0, pages * kPage / (rows * row));
}

}  // namespace

Touched touched_pages(const Convolution& conv, int64_t itemsize) {
  const double share = touched_share(conv, itemsize);
  return share > kAllShare ? Touched::kAll : share > kFewShare ? Touched::kSome : Touched::kFew;
}

int64_t resident_bytes(const Convolution& conv, int64_t rows, int64_t itemsize) {
  const int64_t bytes = checked_product({rows, conv.cols(), itemsize}, "bytes of the dense matrix");
  if (bytes <= kLarge || touched_pages(conv, itemsize) != Touched::kFew) return bytes;
  return static_cast<int64_t>(touched_share(conv, itemsize) * static_cast<double>(bytes));
}

}  // namespace conv2affine
