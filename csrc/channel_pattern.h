// What a row of a matrix has in one input channel: the product of three axis taps.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "convolution.h"
#include "taps.h"

namespace conv2affine {

// The entries of a row within one input channel, of which the others are repetitions: entry e is in the column
// taps[t].input and is the sum of the weights taps[t].kernel, t from end(e - 1), or 0, to end(e) - 1.
struct ChannelPattern {
  std::vector<Tap> taps;      // (column, weight), both counted from the first of the channel
  std::vector<int64_t> ends;  // empty where each entry is one weight
  bool whole = false;         // the weights are 0, 1, 2, ...: all of the channel, as they lie

  int64_t size() const { return ends.empty() ? taps.size() : ends.size(); }
  int64_t end(int64_t e) const { return ends.empty() ? e + 1 : ends[e]; }

  // Of the rows with these patterns along the axes.
  void make(const Convolution& conv, const std::array<AxisTaps, 3>& axes, int64_t pattern1, int64_t pattern2,
            int64_t pattern3) {
    const auto& [axis1, axis2, axis3] = conv.axes;
    taps.clear();
    taps.reserve(conv.taps());
    ends.clear();
    for (const Tap& t1 : axes[0].taps(pattern1)) {
      for (const Tap& t2 : axes[1].taps(pattern2)) {
        for (const Tap& t3 : axes[2].taps(pattern3)) {
          taps.push_back({(t1.input * axis2.input + t2.input) * axis3.input + t3.input,
                          (t1.kernel * axis2.kernel + t2.kernel) * axis3.kernel + t3.kernel});
        }
      }
    }
    if (std::any_of(axes.begin(), axes.end(), [](const AxisTaps& t) { return t.overlaps(); })) {
      // Only then is the product out of order.
      std::stable_sort(taps.begin(), taps.end(), [](const Tap& a, const Tap& b) { return a.input < b.input; });
      for (size_t t = 0; t < taps.size(); ++t) {
        if (t + 1 == taps.size() || taps[t + 1].input != taps[t].input) ends.push_back(t + 1);
      }
      whole = false;
      return;
    }
    // Compared one by one: in a transposed matrix, several entries of a row may be the same weight.
    whole = static_cast<int64_t>(taps.size()) == conv.taps();
    for (size_t t = 0; whole && t < taps.size(); ++t) whole = taps[t].kernel == static_cast<int64_t>(t);
  }
};

}  // namespace conv2affine
