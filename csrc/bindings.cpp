// The Python module `_C`. Loading it registers the operators. It exposes them, the sizes of their results, and what
// tests and bug reports need.
#include <ATen/Version.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <string>
#include <vector>

#include "adjoint.h"
#include "convolution.h"
#include "cpu/memory.h"
#include "dense.h"
#include "rows.h"
#include "sparse.h"

namespace py = pybind11;

namespace conv2affine {

namespace {

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = CONV2AFFINE_COMPILER;
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["cuda"] = CONV2AFFINE_CUDA;
  return info;
}

py::tuple axis_taps(int64_t input, int64_t output, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation,
                    const std::string& rule, bool transpose) {
  const Axis axis = check_axis("axis", input, output, kernel, stride, padding, dilation, rule);
  const AxisTaps taps = transpose ? AxisTaps::transposed(axis) : AxisTaps(axis);
  std::vector<int64_t> start = {0}, inputs, kernels;
  for (int64_t o = 0; o < (transpose ? input : output); ++o) {
    const Place place = taps[o];
    for (const Tap& tap : taps.taps(place.pattern)) {
      inputs.push_back(place.shift + tap.input);
      kernels.push_back(tap.kernel);
    }
    start.push_back(inputs.size());
  }
  const auto array = [](const std::vector<int64_t>& v) { return py::array_t<int64_t>(v.size(), v.data()); };
  return py::make_tuple(array(start), array(inputs), array(kernels));
}

int64_t entries(const std::vector<int64_t>& weight_size, const std::vector<int64_t>& geometry, const std::string& rule,
                int64_t row_start, int64_t row_stop, bool transpose) {
  const auto [conv, taps] = make_sides(check_convolution(weight_size, geometry, rule), transpose);
  check_rows(row_start, row_stop, conv.rows());
  return entries_before(conv, taps, row_stop) - entries_before(conv, taps, row_start);
}

int64_t dense_resident_bytes(const std::vector<int64_t>& weight_size, const std::vector<int64_t>& geometry,
                             const std::string& rule, int64_t rows, int64_t itemsize) {
  return resident_bytes(check_convolution(weight_size, geometry, rule), rows, itemsize);
}

// The type in which an operator's argument comes from Python.
template <typename T>
struct Received {
  using type = T;
};
template <>
struct Received<at::IntArrayRef> {
  using type = const std::vector<int64_t>&;
};

// Binds an operator as the dispatcher has it, but below autograd and with sizes that are numbers, not symbols:
// torch.ops takes half of the time of a small matrix to find out what is in its lists. The last argument is there for
// its type.
template <typename Result, typename... Args>
void def_operator(py::module_& m, const char* name, Result (*)(Args...)) {
  const auto op = c10::Dispatcher::singleton()
                      .findSchemaOrThrow((std::string("conv2affine::") + name).c_str(), "")
                      .typed<Result(Args...)>();
  m.def(name, torch::wrap_pybind_function_no_gil([op](typename Received<Args>::type... arguments) {
          const at::AutoDispatchBelowAutograd guard;
          return op.call(arguments...);
        }),
        ("torch.ops.conv2affine." + std::string(name) + ", below autograd.").c_str());
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of conv2affine; importing it registers torch.ops.conv2affine.";
  m.def("build_info", &build_info, "What this binary was built with and for.");
  // wrap_pybind_function keeps torch's exception types, which plain pybind11 turns into RuntimeError.
  m.def("axis_taps", torch::wrap_pybind_function(axis_taps), py::arg("input"), py::arg("output"), py::arg("kernel"),
        py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("rule"), py::arg("transpose") = false,
        "(start, input, kernel): output coordinate o reads input[start[o]:start[o+1]] through those kernel taps; "
        "transposed, input and output change places.");
  m.def("entries", torch::wrap_pybind_function_no_gil(entries), py::arg("weight_size"), py::arg("geometry"),
        py::arg("rule"), py::arg("row_start"), py::arg("row_stop"), py::arg("transpose"),
        "Number of entries in rows of the matrix, or of its transpose, that a weight goes to.");
  m.def("dense_resident_bytes", torch::wrap_pybind_function_no_gil(dense_resident_bytes), py::arg("weight_size"),
        py::arg("geometry"), py::arg("rule"), py::arg("rows"), py::arg("itemsize"),
        "Bytes that `dense` has in memory for that many rows, once they are filled; on the CPU.");
  def_operator(m, "dense", static_cast<Dense*>(nullptr));
  def_operator(m, "csr", static_cast<Csr*>(nullptr));
  def_operator(m, "coo", static_cast<Coo*>(nullptr));
  def_operator(m, "values", static_cast<Values*>(nullptr));
  def_operator(m, "dense_adjoint", static_cast<DenseAdjoint*>(nullptr));
  def_operator(m, "sparse_adjoint", static_cast<SparseAdjoint*>(nullptr));
}

}  // namespace conv2affine
