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
#include <type_traits>
#include <utility>
#include <vector>

#include "adjoint.h"
#include "bias.h"
#include "cpu/interruptible.h"
#include "cpu/memory.h"
#include "dense.h"
#include "no_memory.h"
#include "pages.h"
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

// The error that Python has set, to be thrown; with the GIL held.
python_error current_error() {
  python_error error;
  error.persist();
  return error;
}

unsigned long main_thread = 0;

// Runs Python's signal handlers; that of Ctrl-C raises KeyboardInterrupt. Python runs them in its main thread alone: so
// no other thread waits for the GIL.
void check_signals() {
  if (PyThread_get_thread_ident() != main_thread) return;
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw current_error();
}

// Calls f. torch::wrap_pybind_function would make a RuntimeError.
template <typename F>
auto with_memory_error(const F& f) {
  try {
    return with_no_memory(f);
  } catch (const NoMemory& error) {
    const py::gil_scoped_acquire gil;
    PyErr_SetString(PyExc_MemoryError, error.what());
    throw current_error();
  }
}

py::tuple axis_taps(int64_t input, int64_t output, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation,
                    const std::string& padding_mode, bool transposed, bool by_columns) {
  const Axis axis = check_axis("axis", input, output, kernel, stride, padding, dilation, padding_mode, transposed);
  const AxisTaps taps = with_memory_error([&] { return by_columns ? AxisTaps::transposed(axis) : AxisTaps(axis); });
  std::vector<int64_t> start = {0}, inputs, kernels;
  for (int64_t o = 0; o < (by_columns ? input : output); ++o) {
    const Place place = taps[o];
    for (const TapRun& run : taps.runs(place.pattern)) {
      for (int64_t n = 0; n < run.count; ++n) {
        for (const TapTerm& term : taps.terms(run)) {
          for (int64_t t = 0; t < term.taps; ++t) {
            inputs.push_back(place.offset + run.input + n * run.step);
            kernels.push_back(term.kernel + n * term.step + t);
          }
        }
      }
    }
    start.push_back(inputs.size());
  }
  const auto array = [](const std::vector<int64_t>& v) { return py::array_t<int64_t>(v.size(), v.data()); };
  return py::make_tuple(array(start), array(inputs), array(kernels));
}

int64_t nnz(const std::vector<int64_t>& weight_size, const std::vector<int64_t>& geometry,
            const std::string& padding_mode, bool transposed, int64_t row_start, int64_t row_stop, bool by_columns) {
  return with_memory_error([&] {
    return check_rows(weight_size, geometry, padding_mode, transposed, row_start, row_stop, by_columns).nnz();
  });
}

int64_t dense_resident_bytes(const std::vector<int64_t>& weight_size, const std::vector<int64_t>& geometry,
                             const std::string& padding_mode, bool transposed, int64_t rows, int64_t itemsize) {
  return resident_bytes(check_convolution(weight_size, geometry, padding_mode, transposed), rows, itemsize);
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

// Binds the dispatcher's operator of this type, but below autograd and with sizes that are numbers, not symbols:
// torch.ops takes half of the time of a small matrix to find out the types of its list elements.
template <typename Result, typename... Args>
void def_operator(py::module_& m, const char* name, std::type_identity<Result(Args...)>) {
  const auto op = c10::Dispatcher::singleton()
                      .findSchemaOrThrow((std::string("conv2affine::") + name).c_str(), "")
                      .typed<Result(Args...)>();
  m.def(name, torch::wrap_pybind_function_no_gil([op](typename Received<Args>::type... arguments) {
          const at::AutoDispatchBelowAutograd guard;
          return with_memory_error([&] { return op.call(arguments...); });
        }),
        ("torch.ops.conv2affine." + std::string(name) + ", below autograd.").c_str());
}

}  // namespace

PYBIND11_MODULE(CONV2AFFINE_MODULE, m) {
  main_thread = py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
  check_interrupt = &check_signals;
  m.doc() = "Compiled part of conv2affine; importing it registers torch.ops.conv2affine.";
  m.def("build_info", &build_info, "What this binary was built with and for.");
  // wrap_pybind_function keeps torch's exception types, which plain pybind11 turns into RuntimeError.
  m.def("axis_taps", torch::wrap_pybind_function(axis_taps), py::arg("input"), py::arg("output"), py::arg("kernel"),
        py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("padding_mode"), py::arg("transposed"),
        py::arg("by_columns") = false,
        "(start, input, kernel): output coordinate o reads input[start[o]:start[o+1]] through those kernel taps; by "
        "columns, input and output change places.");
  m.def("nnz", torch::wrap_pybind_function_no_gil(nnz), py::arg("weight_size"), py::arg("geometry"),
        py::arg("padding_mode"), py::arg("transposed"), py::arg("row_start"), py::arg("row_stop"),
        py::arg("by_columns"), "Number of entries in rows of the matrix, or of its transpose, that a weight goes to.");
  m.def("dense_resident_bytes", torch::wrap_pybind_function_no_gil(dense_resident_bytes), py::arg("weight_size"),
        py::arg("geometry"), py::arg("padding_mode"), py::arg("transposed"), py::arg("rows"), py::arg("itemsize"),
        "Bytes that `dense` has in memory for that many rows, once they are filled; on the CPU.");
  m.def(
      "set_lost_page_seconds", [](double seconds) { lost_page_seconds = seconds; }, py::arg("seconds"),
      "How many seconds a result may lose by huge pages before it gets small ones; for tests.");
  def_operator(m, "dense", std::type_identity<decltype(dense<nullptr>)>{});
  def_operator(m, "csr", std::type_identity<decltype(csr<nullptr, nullptr>)>{});
  def_operator(m, "coo", std::type_identity<decltype(coo<nullptr, nullptr>)>{});
  def_operator(m, "values", std::type_identity<Values>{});
  def_operator(m, "dense_adjoint", std::type_identity<decltype(dense_adjoint<nullptr>)>{});
  def_operator(m, "sparse_adjoint", std::type_identity<decltype(sparse_adjoint<nullptr>)>{});
  def_operator(m, "bias", std::type_identity<decltype(bias<nullptr>)>{});
}

}  // namespace conv2affine
