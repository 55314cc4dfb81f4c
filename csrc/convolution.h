// The arguments that every operator shares, checked once.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <array>
#include <string_view>

#include "axis.h"

namespace conv2affine {

// One convolution as the kernels see it: channels by group, and three axes; the leading ones are trivial for a 1-D or
// 2-D layer. Row (co, o) of its matrix is output channel co at output position o, column (ci, i) input channel ci at
// input position i, both flattened in C order with co and ci counted over all groups.
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

  // The sizes of the transposed matrix. Only the sizes: no tap() works on its axes, AxisTaps::transposed() does.
  Convolution transposed() const;
};

// weight           (groups, out/group, in/group, K_1, ..., K_D), D from 1 to 3, any strides; no size may be 0
// geometry         5 D numbers: input_size (D sizes, at least 1), output_size (D sizes, at least 1),
//                  stride (D steps, at least 1), padding (D left paddings, at least 0), dilation (D steps, at least 1).
//                  One list: PyTorch takes longer to read five of them than a kernel takes for a small matrix.
// rule             "zeros", "circular", "reflect", "replicate" or "transposed"
// Throws ValueError where a constraint does not hold, or where a product of sizes overflows 64 bits, the elements of
// the whole matrix included; whatever passes cannot make a kernel read or write out of bounds, sensible or not.
Convolution check_convolution(const at::Tensor& weight, at::IntArrayRef geometry, std::string_view rule);

// The same from the size of a weight that is not there.
Convolution check_convolution(at::IntArrayRef weight_size, at::IntArrayRef geometry, std::string_view rule);

// Throws ValueError where the product does not fit into 64 bits; `what` tells in the message of what it is the number.
int64_t checked_product(at::IntArrayRef factors, const char* what);

// Throws ValueError unless 0 <= row_start <= row_stop <= rows.
void check_rows(int64_t row_start, int64_t row_stop, int64_t rows);

// Throws ValueError unless the dtype is int32 or int64 and counts that many entries, rows and columns.
void check_index_dtype(at::ScalarType index_dtype, int64_t nnz, int64_t rows, int64_t cols);

// The same for a single axis. `name` tells in messages which one it is.
Axis check_axis(std::string_view name, int64_t input, int64_t output, int64_t kernel, int64_t stride, int64_t padding,
                int64_t dilation, std::string_view rule);

}  // namespace conv2affine
