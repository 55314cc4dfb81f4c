#include "taps.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace conv2affine {

// Entry n reads input + n * step through `taps` taps from kernel + n * kernel_step on. The step is at least 1.
struct Progression {
  int64_t input, step, kernel, kernel_step, taps, count;
};

namespace {

// What output coordinate o of a convolution reads: one progression to the left of the input, one in it, and one to the
// right.
void append_reads(const Axis& axis, int64_t o, std::vector<Progression>& to) {
  for (int64_t k = 0; k < axis.kernel;) {
    const int64_t i = o * axis.stride - axis.padding + k * axis.dilation;
    const bool inside = 0 <= i && i < axis.input;
    const int64_t end = i < 0 ? 0 : inside ? axis.input : INT64_MAX;
    const int64_t count = std::min(axis.kernel - k, (end - 1 - i) / axis.dilation + 1), last = k + count - 1;
    const int64_t input = fold(axis, i);
    if (inside || axis.padding_mode == PaddingMode::circular) {
      to.push_back({input, axis.dilation, k, 1, 1, count});
    } else if (axis.padding_mode == PaddingMode::reflect) {
      to.push_back({input - (count - 1) * axis.dilation, axis.dilation, last, -1, 1, count});
    } else if (axis.padding_mode == PaddingMode::replicate) {
      to.push_back({input, 1, k, 0, count, 1});
    }
    k += count;
  }
}

// Finds the (i, k) with i * stride + k * dilation == sum, i in [0, inputs) and k in [0, kernel), one progression for
// each sum.
class Solver {
 public:
  Solver(int64_t inputs, int64_t kernel, int64_t stride, int64_t dilation)
      : inputs_(inputs),
        kernel_(kernel),
        divisor_(std::gcd(stride, dilation)),
        stride_(stride / divisor_),
        dilation_(dilation / divisor_) {
    // Euclid's algorithm for the inverse of dilation_ modulo stride_.
    int64_t a = stride_, b = dilation_ % stride_, x = 0, y = 1;
    while (b > 0) {
      const int64_t quotient = a / b;
      a = std::exchange(b, a - quotient * b);
      x = std::exchange(y, x - quotient * y);
    }
    inverse_ = x < 0 ? x + stride_ : x;
  }

  void append(int64_t sum, std::vector<Progression>& to) const {
    if (sum < 0 || sum % divisor_ != 0) return;
    sum /= divisor_;
    // The first tap whose distance the stride divides; from there on, every stride-th.
    const int64_t first = static_cast<int64_t>(static_cast<__int128>(sum % stride_) * inverse_ % stride_);
    if (first >= kernel_ || first * dilation_ > sum) return;
    const int64_t input = (sum - first * dilation_) / stride_;
    const int64_t low = std::max<int64_t>(0, ceil_div(input - (inputs_ - 1), dilation_));
    const int64_t high = std::min(input / dilation_, (kernel_ - 1 - first) / stride_);
    if (low > high) return;
    to.push_back({input - high * dilation_, dilation_, first + high * stride_, -stride_, 1, high - low + 1});
  }

 private:
  int64_t inputs_, kernel_, divisor_, stride_, dilation_, inverse_;
};

// The outputs that read the replicated input at the left, i == 0, or at the right, from the padding.
void append_replicated(const Axis& axis, bool right, std::vector<Progression>& to) {
  const Regions regions = regions_of(axis);
  const int64_t saturated_left = regions.saturated_left + (regions.begin > 0),
                saturated_right = std::min(regions.saturated_right, axis.output);
  // Coordinates that share a pattern read through the same taps.
  const auto append = [&](int64_t o, int64_t count) {
    const int64_t edge = (right ? axis.input : 0) + axis.padding - o * axis.stride;
    const int64_t taps_before = std::clamp<int64_t>(ceil_div(edge, axis.dilation), 0, axis.kernel);
    const int64_t first = right ? taps_before : 0, taps = right ? axis.kernel - taps_before : taps_before;
    if (taps > 0) to.push_back({o, 1, first, 0, taps, count});
  };
  if (right) {
    // Outputs before this one read nothing of the right padding.
    const int64_t start = std::max<int64_t>(0, ceil_div(axis.input + axis.padding - reach(axis), axis.stride));
    for (int64_t o = start; o < regions.begin; ++o) append(o, 1);
    for (int64_t o = regions.end; o < saturated_right; ++o) append(o, 1);
    if (saturated_right < axis.output) append(saturated_right, axis.output - saturated_right);
  } else {
    if (saturated_left > 0) append(0, saturated_left);
    for (int64_t o = saturated_left; o < regions.begin; ++o) append(o, 1);  // from there on, none reads the padding
  }
}

}  // namespace

AxisTaps::AxisTaps(const Axis& axis)
    : AxisTaps(axis.output, regions_of(axis),
               [&, solver = Solver(axis.input, axis.kernel, axis.stride, axis.dilation)](int64_t o,
                                                                                         std::vector<Progression>& to) {
                 if (axis.transposed) {
                   solver.append(o + axis.padding, to);
                 } else {
                   append_reads(axis, o, to);
                 }
               }) {}

AxisTaps AxisTaps::transposed(const Axis& axis) {
  // Zero padding and transposition are each other from the other side.
  Axis other = axis;
  std::swap(other.input, other.output);
  other.transposed = !axis.transposed;
  other.padding_mode = PaddingMode::zeros;
  if (axis.padding_mode == PaddingMode::zeros) return AxisTaps(other);
  const Solver solver(axis.output, axis.kernel, axis.stride, axis.dilation);
  return AxisTaps(axis.input, folded_regions(axis, regions_of(other)), [&](int64_t i, std::vector<Progression>& to) {
    const int64_t last = axis.input - 1;
    const auto append_image = [&](int64_t image) { solver.append(image + axis.padding, to); };
    append_image(i);
    if (axis.padding_mode == PaddingMode::circular) {
      append_image(i - axis.input);
      append_image(i + axis.input);
    } else if (axis.padding_mode == PaddingMode::reflect) {
      if (i > 0) append_image(-i);
      if (i < last) append_image(2 * last - i);
    } else {
      if (i == 0) append_replicated(axis, /*right=*/false, to);
      if (i == last) append_replicated(axis, /*right=*/true, to);
    }
  });
}

template <typename Reads>
AxisTaps::AxisTaps(int64_t output, const Regions& regions, const Reads& reads) : output_(output), regions_(regions) {
  const int64_t right = std::min(regions.saturated_right, output - 1) - regions.end + 1;
  const int64_t interior = regions.left() + regions.patterns, patterns = interior + right;
  start_.reserve(patterns + 1);
  nnz_.reserve(patterns + 1);
  runs_.reserve(patterns + 1);
  terms_.reserve(patterns);
  start_.push_back(0);
  nnz_.push_back(0);
  std::vector<Progression> progressions;
  for (int64_t p = 0; p < patterns; ++p) {
    // The first output coordinate of the pattern.
    const int64_t o = p >= interior ? regions.end + p - interior : p > 0 ? regions.saturated_left + p : 0;
    progressions.clear();
    reads(o, progressions);
    add_pattern(progressions);
  }
  runs_.push_back({0, 1, 0, static_cast<int64_t>(terms_.size())});
}

// An example of merging: reflect padding 2, kernel 5, input 6. Output 0 reads the coordinates -2 -1 0 1 2, folded to
// inputs 2 1 0 1 2, in two progressions:
//
//     padding    inputs 1 2      through taps 1 0
//     inside     inputs 0 1 2    through taps 2 3 4
//
// Input 0 is read by the second alone, so that the pattern has two runs:
//
//     input 0, count 1    term {kernel 2, step 1}
//     input 1, count 2    terms {kernel 1, step -1} and {kernel 3, step 1}: taps 1 and 3 for input 1, 0 and 4 for 2
void AxisTaps::add_pattern(std::vector<Progression>& progressions) {
  int64_t nnz = 0;
  const auto add = [&](int64_t input, int64_t step, int64_t count, std::span<const Progression> together) {
    add_run(input, step, count, together);
    nnz += count;
  };
  if (progressions.size() == 1) {
    add(progressions[0].input, progressions[0].step, progressions[0].count, progressions);
    progressions.clear();
  }
  const auto by_input = [](const Progression& a, const Progression& b) { return a.input < b.input; };
  const auto by_kernel = [](const Progression& a, const Progression& b) { return a.kernel < b.kernel; };
  int64_t step = 1;
  for (const Progression& p : progressions) step = p.count > 1 ? p.step : step;
  const auto interleaves = [&](const Progression& p) {
    return (p.count > 1 && p.step != step) || (p.input - progressions[0].input) % step != 0;
  };
  if (std::any_of(progressions.begin(), progressions.end(), interleaves)) {
    std::vector<Progression> single;
    for (const Progression& p : progressions) {
      for (int64_t n = 0; n < p.count; ++n) {
        single.push_back({p.input + n * p.step, 1, p.kernel + n * p.kernel_step, 0, p.taps, 1});
      }
    }
    progressions = std::move(single);
    step = 1;
  }
  std::sort(progressions.begin(), progressions.end(), by_input);
  // From one input on, as far as the same progressions reach and their taps keep their order.
  std::vector<Progression> together;
  for (auto next = progressions.begin(); next != progressions.end() || !together.empty();) {
    const int64_t input = together.empty() ? next->input : together[0].input;
    while (next != progressions.end() && next->input == input) together.push_back(*next++);
    std::sort(together.begin(), together.end(), by_kernel);
    int64_t count = next == progressions.end() ? INT64_MAX : (next->input - input) / step;
    for (const Progression& p : together) count = std::min(count, p.count);
    for (size_t t = 1; t < together.size(); ++t) {
      const Progression &a = together[t - 1], &b = together[t];
      const int64_t approach = a.kernel_step - b.kernel_step;
      if (approach > 0) count = std::min(count, (b.kernel - a.kernel - 1) / approach + 1);
    }
    add(input, step, count, together);
    for (Progression& p : together) {
      p.input += count * step;
      p.kernel += count * p.kernel_step;
      p.count -= count;
    }
    std::erase_if(together, [](const Progression& p) { return p.count == 0; });
  }
  start_.push_back(runs_.size());
  nnz_.push_back(nnz_.back() + nnz);
}

void AxisTaps::add_run(int64_t input, int64_t step, int64_t count, std::span<const Progression> together) {
  runs_.push_back({input, step, count, static_cast<int64_t>(terms_.size())});
  int64_t taps = 0;
  for (const Progression& p : together) {
    terms_.push_back({p.kernel, p.kernel_step, p.taps});
    taps += p.taps;
  }
  max_taps_ = std::max(max_taps_, taps);
}

}  // namespace conv2affine
