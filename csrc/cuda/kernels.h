// What the .cu files offer to the tensor side: plain pointers to device memory, no torch. All of it is asynchronous, on
// `stream`, which is a cudaStream_t, and can be captured into a graph.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "axis.h"
#include "cuda/row_table.h"
#include "cuda/scalar.h"

namespace conv2affine {

// Copies `count` numbers from the host; they travel as arguments of kernels, so `from` may be gone when this returns,
// and a graph keeps them.
cudaError_t launch_upload(const int64_t* from, int64_t* to, int64_t count, void* stream);

// Writes rows [row_start, row_stop) of the matrix of `cols` columns, zeros included; `matrix` points at row_start.
cudaError_t launch_dense(Dtype dtype, const RowTable& table, const void* weight, void* matrix, int64_t cols,
                         int64_t row_start, int64_t row_stop, void* stream);

// The arrays of a sparse matrix, from row_start on; null ones are not written. A CSR matrix has `crow`, a COO matrix
// the `row` of each entry. `before` is the nnz of the rows before row_start, `nnz` that of these rows.
template <typename index_t>
struct SparsePointers {
  index_t *crow, *row, *col;
  void* values;
  int64_t before, nnz;
};

cudaError_t launch_sparse(Dtype dtype, const RowTable& table, const void* weight, SparsePointers<int32_t> to,
                          int64_t row_start, int64_t row_stop, void* stream);
cudaError_t launch_sparse(Dtype dtype, const RowTable& table, const void* weight, SparsePointers<int64_t> to,
                          int64_t row_start, int64_t row_stop, void* stream);

// Writes `rows` numbers, to[r] = bias[r / outputs].
cudaError_t launch_bias(Dtype dtype, const void* bias, void* to, int64_t outputs, int64_t rows, void* stream);

// The convolution of an adjoint, as its layer sees it, and the rows [row_start, row_stop) of the given matrix. The
// outputs are summed in `slices`, which keeps a device busy where there are few weights.
struct AdjointShape {
  int64_t groups, out_per_group, in_per_group;
  Axis axis1, axis2, axis3;
  int64_t row_start, row_stop, slices;

  CONV2AFFINE_HOST_DEVICE int64_t weights() const {
    return groups * out_per_group * in_per_group * axis1.kernel * axis2.kernel * axis3.kernel;
  }
};

// A dense matrix from row_start on.
struct AdjointMatrix {
  const void* data;
  int64_t row_stride, column_stride;
};

// The values of a sparse matrix, or of its transpose, as `table` describes it; `before` as in SparsePointers.
struct AdjointValues {
  RowTable table;
  const void* data;
  int64_t before;
};

// Both write partial (slices, weights): its sums over the slices are the weights. It is of the type of the matrix, or
// of float32 for half types.
cudaError_t launch_dense_adjoint(Dtype dtype, const AdjointShape& shape, const AdjointMatrix& matrix, void* partial,
                                 void* stream);
cudaError_t launch_sparse_adjoint(Dtype dtype, const AdjointShape& shape, const AdjointValues& values, bool by_columns,
                                  void* partial, void* stream);

}  // namespace conv2affine
