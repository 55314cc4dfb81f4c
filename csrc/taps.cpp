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
  entries_.reserve(patterns + 1);
  entries_.push_back(0);
  taps_.reserve(axis.kernel);
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
    close_pattern();
  }
}

AxisTaps::AxisTaps(int64_t outputs)
    : output_(outputs), interior_begin_(outputs), interior_end_(outputs), start_{0}, entries_{0} {}

AxisTaps AxisTaps::transposed(int64_t inputs) const {
  // Padding modes send the margins back into the middle: no interior is left that could be counted on.
  std::vector<std::vector<Tap>> read_by(inputs);
  for (int64_t o = 0; o < output_; ++o) {
    const Place place = (*this)[o];
    for (const Tap& tap : taps(place.pattern)) read_by[place.shift + tap.input].push_back({o, tap.kernel});
  }
  AxisTaps result(inputs);
  for (const std::vector<Tap>& pattern : read_by) {
    result.taps_.insert(result.taps_.end(), pattern.begin(), pattern.end());
    result.close_pattern();
  }
  return result;
}

void AxisTaps::close_pattern() {
  int64_t entries = 0;
  for (size_t t = start_.back(); t < taps_.size(); ++t) {
    if (static_cast<int64_t>(t) == start_.back() || taps_[t].input != taps_[t - 1].input) ++entries;
  }
  overlaps_ = overlaps_ || entries < static_cast<int64_t>(taps_.size()) - start_.back();
  start_.push_back(taps_.size());
  entries_.push_back(entries_.back() + entries);
}

int64_t AxisTaps::entries_before(int64_t o) const {
  const int64_t* left = entries_.data();
  const int64_t* interior = left + interior_begin_;
  const int64_t* right = interior + interior_patterns_;
  const int64_t inside = std::clamp(o, interior_begin_, interior_end_) - interior_begin_;
  const int64_t turns = inside / period_, begun = inside % period_;
  const int64_t behind = std::max<int64_t>(0, o - interior_end_);
  return left[std::min(o, interior_begin_)] + turns * (*right - *interior) + (interior[begun] - *interior) +
         (right[behind] - *right);
}

}  // namespace conv2affine
