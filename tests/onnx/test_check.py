"""The check of ONNX results: each output element by its own scale, as the original with noise in it shows."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from conv2affine import onnx
from conv2affine.onnx.exporting import exporter, storage
from conv2affine.onnx.running.runner import runner

SCALES = np.array([1e5, 1e-6, 1, 1e5, 1e-3, 1e2])


def uneven(dtype):
    """A Gemm, a Relu, and a Gemm whose rows differ in scale by eleven orders."""
    random = np.random.default_rng(0)
    first, second = random.standard_normal((7, 9)), random.standard_normal((6, 9)) * SCALES[:, None]
    weights = [numpy_helper.from_array(w.astype(dtype), name) for w, name in ((first, "w"), (second, "v"))]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v"], ["y"], transB=1),
    ]
    type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, y = (helper.make_tensor_value_info(name, type, ["N", size]) for name, size in (("x", 7), ("y", 6)))
    graph = helper.make_graph(nodes, "uneven", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", ["graph", "mlp"])
@pytest.mark.parametrize("row", [0, 1, 4])
def test_a_wrong_row_is_refused(row, form, dtype, break_row):
    model = uneven(dtype)
    assert onnx.convert(model, form=form).is_batched
    break_row(row, exporter)
    with pytest.raises(RuntimeError, match=rf"off by .* at \[\d+, {row}\], where rounding explains .* in output 0"):
        onnx.convert(model, form=form)


def test_a_wrong_row_of_a_result_with_a_file_of_data_is_refused(break_row, monkeypatch):
    monkeypatch.setattr(storage, "LARGE", 0)
    test_a_wrong_row_is_refused(4, "mlp", np.float64, break_row)


def at_walls(dtype):
    """0.7 less a maximum of clips, without what is negative, and what is left of negative numbers."""
    type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    arrays = {"l": -0.3, "h": 0.7, "zero": 0, "three": [-1, 1, 64]}
    constants = [
        numpy_helper.from_array(np.array(v, np.int64 if n == "three" else dtype), n) for n, v in arrays.items()
    ]
    lines = [
        ("Clip", "x l h", "c"),
        ("Reshape", "c three", "r"),
        ("MaxPool", "r", "m"),
        ("Flatten", "m", "f"),
        ("Sub", "h f", "s"),
        ("Relu", "s", "a"),
        ("Min", "x zero", "n"),
        ("Relu", "n", "b"),
        ("Concat", "a b", "y"),
    ]
    options = {"MaxPool": {"kernel_shape": [5]}, "Concat": {"axis": 1}}
    nodes = [helper.make_node(kind, x.split(), [y], **options.get(kind, {})) for kind, x, y in lines]
    x, y = (helper.make_tensor_value_info(name, type, ["N", size]) for name, size in (("x", 64), ("y", 124)))
    graph = helper.make_graph(nodes, "walls", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("box", [None, (-3, 3)], ids=["all", "box"])
def test_rounding_at_a_wall_is_no_error(box, dtype):
    assert onnx.convert(at_walls(dtype), form="mlp", box=box).difference < 1e-5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_at_a_wall_is_no_error_in_a_result_with_a_file_of_data(dtype, monkeypatch):
    monkeypatch.setattr(storage, "LARGE", 0)
    test_rounding_at_a_wall_is_no_error((-3, 3), dtype)


def test_noise_moves_each_element_by_its_own_scale():
    original, x = runner(uneven(np.float64)), np.random.default_rng(1).standard_normal((500, 7))
    [exact], [moved] = original({"x": x}), original.noisy(1e-9)({"x": x})
    size = np.abs(moved - exact).mean(0)
    assert ((size > 1e-10 * SCALES) & (size < 1e-7 * SCALES)).all()
    [opposite] = original.noisy(1e-9, 1)({"x": x})
    assert (np.abs(moved + opposite - 2 * exact).mean(0) < 1e-2 * size).all()


def test_a_sigmoid_far_below_0_is_as_exact_as_its_runtime():
    model = uneven(np.float32)
    model.graph.node[-1].output[0] = "z"
    shift = numpy_helper.from_array(np.array([0, -13, -14, -15, -16, 0], np.float32), "shift")
    scale = numpy_helper.from_array(np.array([1, 1, 1e-2, 1e-8, 1, 1], np.float32), "scale")
    model.graph.initializer.extend([shift, scale])
    nodes = ("Mul", ["z", "scale"], ["s"]), ("Add", ["s", "shift"], ["t"]), ("Sigmoid", ["t"], ["y"])
    model.graph.node.extend(helper.make_node(*node) for node in nodes)
    assert onnx.convert(model, dtype=torch.float64).difference < 1e-6


def test_sizes_and_constants_have_no_noise():
    # The scales of a Resize are floats that no input reaches; with noise in them, the result would have another shape.
    scales = helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.float32([1, 1, 2, 2])))
    resize = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest", nearest_mode="floor")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 1, k, k]) for n, k in (("x", 3), ("y", 6)))
    graph = helper.make_graph([scales, resize], "resize", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    batch = torch.rand(2, 1, 3, 3).numpy()
    [exact], [moved] = runner(model)({"x": batch}), runner(model).noisy(1e-5)({"x": batch})
    assert exact.shape == moved.shape == (2, 1, 6, 6)
    assert 0 < np.abs(moved - exact).max() < 1e-4
