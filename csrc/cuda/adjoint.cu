#include "cuda/kernels.h"
#include "cuda/row.h"

namespace conv2affine {

namespace {

__device__ int64_t clamp(int64_t n, int64_t low, int64_t high) { return n < low ? low : n < high ? n : high; }

// An entry of the matrix, its channels counted over all groups.
struct Entry {
  int64_t co, o1, o2, o3, ci, i1, i2, i3;
};

// Where the entries of a dense matrix are.
template <typename scalar_t>
struct DenseSource {
  static constexpr bool by_columns = false;
  AdjointMatrix matrix;

  __device__ const scalar_t* find(const AdjointShape& shape, const Entry& at) const {
    const Axis &axis1 = shape.axis1, &axis2 = shape.axis2, &axis3 = shape.axis3;
    const int64_t row = ((at.co * axis1.output + at.o1) * axis2.output + at.o2) * axis3.output + at.o3;
    const int64_t column = ((at.ci * axis1.input + at.i1) * axis2.input + at.i2) * axis3.input + at.i3;
    return static_cast<const scalar_t*>(matrix.data) + (row - shape.row_start) * matrix.row_stride +
           column * matrix.column_stride;
  }
};

// Where the entries of a sparse matrix are, in order of rows or of columns; null beyond its rows.
template <typename scalar_t, bool by_columns_>
struct SparseSource {
  static constexpr bool by_columns = by_columns_;
  AdjointValues values;

  // Which of the entries of its row an entry is, along one axis: the runs ascend, and one of them has it.
  static __device__ int64_t rank(const AxisTable& axis, const Reads& reads, int64_t column) {
    const int64_t input = column - reads.offset;
    int64_t before = 0;
    for (const TapRun* run = axis.runs + reads.first_run;; ++run) {
      const int64_t step = __ldg(&run->step), count = __ldg(&run->count), distance = input - __ldg(&run->input);
      if (distance <= (count - 1) * step) return before + distance / step;
      before += count;
    }
  }

  __device__ const scalar_t* find(const AdjointShape& shape, const Entry& at) const {
    const RowTable& table = values.table;
    const Row row = by_columns ? Row(table, at.ci, at.i1, at.i2, at.i3) : Row(table, at.co, at.o1, at.o2, at.o3);
    if (by_columns) {
      const int64_t r =
          ((at.ci * table.axis1.output + at.i1) * table.axis2.output + at.i2) * table.axis3.output + at.i3;
      if (r < shape.row_start || r >= shape.row_stop) return nullptr;
    }
    const int64_t rank1 = rank(table.axis1, row.reads1, by_columns ? at.o1 : at.i1);
    const int64_t rank2 = rank(table.axis2, row.reads2, by_columns ? at.o2 : at.i2);
    const int64_t rank3 = rank(table.axis3, row.reads3, by_columns ? at.o3 : at.i3);
    const int64_t channel = (by_columns ? at.co : at.ci) % table.in_per_group;
    const int64_t line = (channel * row.reads1.nnz + rank1) * row.reads2.nnz + rank2;
    return static_cast<const scalar_t*>(values.data) + row.nnz_before(table) - values.before + line * row.reads3.nnz +
           rank3;
  }
};

// A thread sums for one weight over one slice of the outputs; neighbours have neighbouring weights, which lie side by
// side in the rows.
template <typename scalar_t, typename sum_t, typename Source>
__global__ void adjoint_kernel(const __grid_constant__ AdjointShape shape, const __grid_constant__ Source source,
                               sum_t* __restrict__ partial) {
  const Axis &axis1 = shape.axis1, &axis2 = shape.axis2, &axis3 = shape.axis3;
  const int64_t outputs = axis1.output * axis2.output * axis3.output;
  const int64_t weights = shape.weights(), step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; n < shape.slices * weights; n += step) {
    const int64_t slice = n / weights, w = n - slice * weights;
    const int64_t k3 = w % axis3.kernel, k2 = w / axis3.kernel % axis2.kernel;
    const int64_t k1 = w / axis3.kernel / axis2.kernel % axis1.kernel;
    const int64_t channels = w / axis3.kernel / axis2.kernel / axis1.kernel, co = channels / shape.in_per_group;
    const int64_t ci = channels - co * shape.in_per_group + co / shape.out_per_group * shape.in_per_group;

    const int64_t first = Source::by_columns ? 0 : clamp(shape.row_start - co * outputs, 0, outputs);
    const int64_t last = Source::by_columns ? outputs : clamp(shape.row_stop - co * outputs, 0, outputs);
    const int64_t each = (last - first + shape.slices - 1) / shape.slices;
    const int64_t begin = clamp(first + slice * each, first, last), end = clamp(begin + each, begin, last);
    int64_t o3 = begin % axis3.output, o2 = begin / axis3.output % axis2.output;
    int64_t o1 = begin / axis3.output / axis2.output;
    sum_t sum{};
    for (int64_t o = begin; o < end; ++o) {
      const int64_t i1 = tap(axis1, o1, k1), i2 = tap(axis2, o2, k2), i3 = tap(axis3, o3, k3);
      if (i1 >= 0 && i2 >= 0 && i3 >= 0) {
        const scalar_t* from = source.find(shape, {co, o1, o2, o3, ci, i1, i2, i3});
        if (from) sum = add(sum, to_sum(*from));
      }
      if (++o3 < axis3.output) continue;
      o3 = 0;
      if (++o2 < axis2.output) continue;
      o2 = 0;
      ++o1;
    }
    partial[n] = sum;
  }
}

template <typename scalar_t, typename Source>
cudaError_t launch_adjoint(const AdjointShape& shape, const Source& source, void* partial, void* stream) {
  using sum_t = decltype(to_sum(scalar_t{}));
  return launch(adjoint_kernel<scalar_t, sum_t, Source>, blocks_for(shape.slices * shape.weights(), kThreads),
                dim3(kThreads), stream, shape, source, static_cast<sum_t*>(partial));
}

}  // namespace

cudaError_t launch_dense_adjoint(Dtype dtype, const AdjointShape& shape, const AdjointMatrix& matrix, void* partial,
                                 void* stream) {
  return dispatch_float(dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    return launch_adjoint<scalar_t>(shape, DenseSource<scalar_t>{matrix}, partial, stream);
  });
}

cudaError_t launch_sparse_adjoint(Dtype dtype, const AdjointShape& shape, const AdjointValues& values, bool by_columns,
                                  void* partial, void* stream) {
  return dispatch_float(dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    return by_columns ? launch_adjoint<scalar_t>(shape, SparseSource<scalar_t, true>{values}, partial, stream)
                      : launch_adjoint<scalar_t>(shape, SparseSource<scalar_t, false>{values}, partial, stream);
  });
}

}  // namespace conv2affine
