#include "taps.h"

#include <algorithm>
#include <utility>

namespace conv2affine {

namespace {

int64_t ceil_div(int64_t numerator, int64_t denominator) { return (numerator + denominator - 1) / denominator; }

// Where no tap reads outside of the input. Of a transposed convolution, only distances that the stride divides count.
Interior interior_of(const Axis& axis) {
  const int64_t reach = (axis.kernel - 1) * axis.dilation;
  Interior interior{};
  if (axis.rule == Rule::transposed) {
    interior.period = axis.stride;
    interior.step = 1;
    interior.begin = reach - axis.padding - (axis.stride - 1);
    interior.end = axis.input * axis.stride - axis.padding;
  } else {
    interior.step = axis.stride;
    interior.begin = ceil_div(axis.padding, axis.stride);
    const int64_t last = axis.input - 1 + axis.padding - reach;
    interior.end = last < 0 ? 0 : last / axis.stride + 1;
  }
  interior.begin = std::clamp<int64_t>(interior.begin, 0, axis.output);
  interior.end = std::clamp(interior.end, interior.begin, axis.output);
  interior.patterns = std::min(interior.period, interior.end - interior.begin);
  return interior;
}

// What an output reads in the padding: an input coordinate that is folded.
struct Folded {
  int64_t input, output, kernel;
};

// All of them, by input coordinate. Outputs of the interior read none.
std::vector<Folded> folded_taps(const Axis& axis) {
  std::vector<Folded> folded;
  folded.reserve(axis.kernel);
  const auto append = [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t k = 0; k < axis.kernel; ++k) {
        const int64_t i = o * axis.stride - axis.padding + k * axis.dilation;
        if (i < 0 || i >= axis.input) folded.push_back({fold(axis, i), o, k});
      }
    }
  };
  const Interior interior = interior_of(axis);
  append(0, interior.begin);
  append(interior.end, axis.output);
  std::sort(folded.begin(), folded.end(), [](const Folded& a, const Folded& b) { return a.input < b.input; });
  return folded;
}

// The longest stretch of an interior, along the inputs, that nothing is folded to.
Interior without(Interior interior, const std::vector<Folded>& folded) {
  const int64_t last = interior.end;
  int64_t from = interior.begin;
  interior.end = from;
  const auto close_stretch = [&](int64_t to) {
    if (to - from > interior.end - interior.begin) {
      interior.begin = from;
      interior.end = to;
    }
    from = std::max(from, to + 1);
  };
  for (const Folded& f : folded) close_stretch(std::min(f.input, last));
  close_stretch(last);
  interior.patterns = std::min(interior.period, interior.end - interior.begin);
  return interior;
}

}  // namespace

AxisTaps::AxisTaps(const Axis& axis)
    : AxisTaps(axis.output, axis.kernel, interior_of(axis), [&](int64_t o, std::vector<Tap>& taps) {
        for (int64_t k = 0; k < axis.kernel; ++k) {
          const int64_t i = tap(axis, o, k);
          if (i >= 0) taps.push_back({i, k});
        }
      }) {}

AxisTaps AxisTaps::transposed(const Axis& axis) {
  // Zero padding and transposition are each other from the other side.
  Axis other = axis;
  std::swap(other.input, other.output);
  other.rule = axis.rule == Rule::transposed ? Rule::zeros : Rule::transposed;
  if (axis.rule == Rule::zeros || axis.rule == Rule::transposed) return AxisTaps(other);
  // The other modes are zero padding and, beside, what is folded.
  const std::vector<Folded> folded = folded_taps(axis);
  const Interior interior = without(interior_of(other), folded);
  return AxisTaps(axis.input, axis.kernel, interior, [&](int64_t i, std::vector<Tap>& taps) {
    for (int64_t k = 0; k < axis.kernel; ++k) {
      const int64_t o = tap(other, i, k);
      if (o >= 0) taps.push_back({o, k});
    }
    auto f = std::lower_bound(folded.begin(), folded.end(), i,
                              [](const Folded& folded, int64_t input) { return folded.input < input; });
    for (; f != folded.end() && f->input == i; ++f) taps.push_back({f->output, f->kernel});
  });
}

template <typename Reads>
AxisTaps::AxisTaps(int64_t output, int64_t kernel, const Interior& interior, const Reads& reads)
    : output_(output), interior_(interior) {
  const int64_t patterns = interior.begin + interior.patterns + (output - interior.end);
  start_.reserve(patterns + 1);
  start_.push_back(0);
  entries_.reserve(patterns + 1);
  entries_.push_back(0);
  taps_.reserve(kernel);  // a kernel for which there is no memory fails here, not after it was walked through
  for (int64_t p = 0; p < patterns; ++p) {
    const bool behind = p >= interior.begin + interior.patterns;
    const int64_t first = taps_.size();
    reads(behind ? p - interior.patterns + (interior.end - interior.begin) : p, taps_);
    std::sort(taps_.begin() + first, taps_.end(),
              [](const Tap& a, const Tap& b) { return a.input != b.input ? a.input < b.input : a.kernel < b.kernel; });
    close_pattern();
  }
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
