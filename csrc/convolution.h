// One convolution as the kernels see it, and the function that validates operator arguments.
#pragma once

#include <c10/util/ArrayRef.h>

#include <array>
#include <string_view>

#include "axis.h"

namespace conv2affine {

// Channels by group, and three axes; the leading ones are trivial for a 1-D or 2-D layer. Row (co, o) of the matrix is
// output channel co at output position o, column (ci, i) is input channel ci at input position i, both flattened in C
// order with co and ci counted over all groups.
struct Convolution {
  int64_t groups;
  int64_t out_per_group;
  int64_t in_per_group;
  std::array<Axis, 3> axes;

  int64_t inputs() const { return axes[0].input * axes[1].input * axes[2].input; }
  int64_t outputs() const { return axes[0].output * axes[1].output * axes[2].output; }
  int64_t taps() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }
  int64_t rows() const { return groups * out_per_group * outputs(); }
  int64_t cols() const { return groups * in_per_group * inputs(); }

  // The sizes of the transposed matrix, and back. Only the sizes: tap() does not work on its axes,
  // AxisTaps::transposed() takes its place.
  Convolution transposed() const;
};

// weight_size      (groups, out/group, in/group, K_1, ..., K_D), D from 1 to 3, all at least 1
// geometry         5 D numbers: input_size (D sizes, at least 1), output_size (D sizes, at least 1),
//                  stride (D steps, at least 1), padding (D left paddings, at least 0), dilation (D steps, at least 1).
//                  One list: PyTorch takes longer to read five of them than a kernel takes for a small matrix.
// padding_mode     "zeros", "circular", "reflect" or "replicate"; "zeros" for a transposed convolution
// Throws ValueError where a constraint does not hold, or where a product of sizes overflows 64 bits, the elements of
// the whole matrix included. Whatever passes cannot make a kernel read or write out of bounds, sensible or not.
Convolution check_convolution(at::IntArrayRef weight_size, at::IntArrayRef geometry, std::string_view padding_mode,
                              bool transposed);

// The same for a single axis. `name` says in messages which one it is.
Axis check_axis(std::string_view name, int64_t input, int64_t output, int64_t kernel, int64_t stride, int64_t padding,
                int64_t dilation, std::string_view padding_mode, bool transposed);

// Throws ValueError where the product does not fit into 64 bits; `what` names the quantity in the message.
int64_t checked_product(at::IntArrayRef factors, const char* what);

}  // namespace conv2affine
