#include "taps.h"

#include <algorithm>

namespace conv2affine {

namespace {

int64_t ceil_div(int64_t numerator, int64_t denominator) { return (numerator + denominator - 1) / denominator; }

}  // namespace

AxisTaps::AxisTaps(const Axis& axis) : output_(axis.output) {
  const int64_t reach = (axis.kernel - 1) * axis.dilation;
  int64_t begin, end;  // the interior: no tap reads outside of the input
  if (axis.rule == Rule::transposed) {
    period_ = axis.stride;
    step_ = 1;
    begin = reach - axis.padding;
    end = (axis.input - 1) * axis.stride - axis.padding + 1;
  } else {
    period_ = 1;
    step_ = axis.stride;
    begin = ceil_div(axis.padding, axis.stride);
    const int64_t last = axis.input - 1 + axis.padding - reach;
    end = last < 0 ? 0 : last / axis.stride + 1;
  }
  interior_begin_ = std::clamp<int64_t>(begin, 0, output_);
  interior_end_ = std::clamp(end, interior_begin_, output_);
  interior_patterns_ = std::min(period_, interior_end_ - interior_begin_);

  const int64_t patterns = interior_begin_ + interior_patterns_ + (output_ - interior_end_);
  start_.reserve(patterns + 1);
  start_.push_back(0);
  for (int64_t p = 0; p < patterns; ++p) {
    const bool behind = p >= interior_begin_ + interior_patterns_;
    const int64_t o = behind ? p - interior_patterns_ + (interior_end_ - interior_begin_) : p;
    const size_t first = taps_.size();
    for (int64_t k = 0; k < axis.kernel; ++k) {
      const int64_t i = tap(axis, o, k);
      if (i >= 0) taps_.push_back({i, k});
    }
    std::sort(taps_.begin() + first, taps_.end(),
              [](const Tap& a, const Tap& b) { return a.input != b.input ? a.input < b.input : a.kernel < b.kernel; });
    start_.push_back(taps_.size());
    overlaps_ = overlaps_ || distinct(p) < start_[p + 1] - start_[p];
  }
}

int64_t AxisTaps::distinct(int64_t pattern) const {
  int64_t count = 0;
  for (int64_t t = start_[pattern]; t < start_[pattern + 1]; ++t) {
    if (t == start_[pattern] || taps_[t].input != taps_[t - 1].input) ++count;
  }
  return count;
}

int64_t AxisTaps::entries() const {
  int64_t total = 0;
  for (int64_t p = 0; p + 1 < static_cast<int64_t>(start_.size()); ++p) {
    const int64_t nth = p - interior_begin_;  // place among the patterns of the interior
    const bool inside = 0 <= nth && nth < interior_patterns_;
    const int64_t repeats = inside ? ceil_div(interior_end_ - interior_begin_ - nth, period_) : 1;
    total += repeats * distinct(p);
  }
  return total;
}

}  // namespace conv2affine
