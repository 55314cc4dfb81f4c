#include "taps.h"

#include <algorithm>
#include <utility>

namespace conv2affine {

namespace {

int64_t ceil_div(int64_t numerator, int64_t denominator) { return (numerator + denominator - 1) / denominator; }

}  // namespace

AxisTaps::AxisTaps(const Axis& axis) : output_(axis.output) {
  const int64_t reach = (axis.kernel - 1) * axis.dilation;
  int64_t begin, end;  // the interior: no tap reads outside of the input
  if (axis.rule == Rule::transposed) {
    interior_.period = axis.stride;
    interior_.step = 1;
    begin = reach - axis.padding;
    end = (axis.input - 1) * axis.stride - axis.padding + 1;
  } else {
    interior_.step = axis.stride;
    begin = ceil_div(axis.padding, axis.stride);
    const int64_t last = axis.input - 1 + axis.padding - reach;
    end = last < 0 ? 0 : last / axis.stride + 1;
  }
  interior_.begin = std::clamp<int64_t>(begin, 0, output_);
  interior_.end = std::clamp(end, interior_.begin, output_);
  interior_.patterns = std::min(interior_.period, interior_.end - interior_.begin);

  const int64_t patterns = interior_.begin + interior_.patterns + (output_ - interior_.end);
  start_.reserve(patterns + 1);
  start_.push_back(0);
  entries_.reserve(patterns + 1);
  entries_.push_back(0);
  taps_.reserve(axis.kernel);
  for (int64_t p = 0; p < patterns; ++p) {
    const bool behind = p >= interior_.begin + interior_.patterns;
    const int64_t o = behind ? p - interior_.patterns + (interior_.end - interior_.begin) : p;
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

AxisTaps::AxisTaps(int64_t outputs) : output_(outputs), interior_{outputs, outputs}, start_{0}, entries_{0} {}

AxisTaps AxisTaps::transposed(const Axis& axis) {
  Axis other = axis;
  std::swap(other.input, other.output);
  if (axis.rule == Rule::zeros || axis.rule == Rule::transposed) {  // each is the other one from the other side
    other.rule = axis.rule == Rule::zeros ? Rule::transposed : Rule::zeros;
    return AxisTaps(other);
  }
  // The other modes send the margins back into the middle: no interior is left that could be counted on.
  const AxisTaps taps(axis);
  std::vector<std::vector<Tap>> read_by(axis.input);
  for (int64_t o = 0; o < axis.output; ++o) {
    const Place place = taps[o];
    for (const Tap& tap : taps.taps(place.pattern)) read_by[place.shift + tap.input].push_back({o, tap.kernel});
  }
  AxisTaps result(axis.input);
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
  most_entries_ = std::max(most_entries_, entries);
  start_.push_back(taps_.size());
  entries_.push_back(entries_.back() + entries);
}

}  // namespace conv2affine
