"""ONNX files in, ONNX files out: what is read, and what is written."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from conv2affine.onnx import convert, plan
from conv2affine.onnx.exporting import exporter, storage
from conv2affine.onnx.running import runner
from tests.onnx.models import WEIGHTS, cnn, difference, inputs, model, operators, random


def test_graph_form():
    result = convert(cnn())
    assert operators(result.model) == ["Reshape", "Gemm", "Relu", "Reshape", "MaxPool", "Reshape", "Gemm"]
    assert difference(cnn(), result.model, inputs(result.model, 5)) < 1e-6
    assert result.difference < 1e-6
    assert result.is_batched
    assert not result.kept


def test_mlp_form_is_what_simple_readers_take():
    result = convert(cnn(1), form="mlp").model
    assert operators(result) == ["Reshape", *["Gemm", "Relu"] * 3, "Gemm"]
    gemms = [node for node in result.graph.node if node.op_type == "Gemm"]
    for node in gemms:
        assert {a.name: helper.get_attribute_value(a) for a in node.attribute} == {
            "alpha": 1,
            "beta": 1,
            "transA": 0,
            "transB": 1,
        }
        assert len(node.input) == 3
    names = [node.name for node in result.graph.node]
    assert len(set(names)) == len(names)
    assert names[2] == "c/Gemm"
    onnx.checker.check_model(result, full_check=True)


@pytest.mark.parametrize("form", ["graph", "mlp"])
def test_flat(form):
    original = model("y = Conv<pads = [1, 1, 1, 1]>(x, w)", {"x": ("N", 1, 6, 6)}, WEIGHTS)
    result = convert(original, form=form, flat=True).model
    assert operators(result) == ["Gemm"]
    x = random(3, 1, 6, 6)
    [expected], [got] = runner.runner(original)({"x": x}), runner.runner(result)({"x": x.reshape(3, -1)})
    np.testing.assert_allclose(got, expected.reshape(3, -1), atol=1e-5)
    convert(cnn(), form=form, flat=True)


def test_max_pooling_as_relus():
    result = convert(cnn(), max_pool="relu")
    assert set(operators(result.model)) == {"Add", "Reshape", "Gemm", "Relu"}


def test_merge():
    linear = model("a = MatMul(x, v)\ny = MatMul(a, w)", {"x": ("N", 4)}, {"v": random(4, 9), "w": random(9, 5)})
    assert operators(convert(linear, merge="never").model) == ["Gemm", "Gemm"]
    assert operators(convert(linear, merge="always").model) == ["Gemm"]


def test_names_and_types_are_kept():
    original = model("out = Add(left, right)", {"left": (2, 3), "right": (3,)}, outputs=["out"])
    result = convert(original).model
    assert [info.name for info in result.graph.input] == ["left", "right"]
    assert [info.type for info in result.graph.input] == [info.type for info in original.graph.input]
    assert result.graph.output[0] == original.graph.output[0]


def test_symbolic_batch_keeps_its_name():
    result = convert(cnn()).model
    assert [d.dim_param or d.dim_value for d in result.graph.input[0].type.tensor_type.shape.dim] == ["N", 1, 6, 6]
    assert [d.dim_param or d.dim_value for d in result.graph.output[0].type.tensor_type.shape.dim] == ["N", 4]


def test_shapes_of_symbolic_sizes():
    original = model("y = Conv(x, w)", {"x": ("N", 1, "H", "W")}, {"w": random(2, 1, 3, 3)})
    with pytest.raises(ValueError, match=r"input x \(N, 1, H, W\) must have fixed.* --shape x=1,1,32,32, with its"):
        convert(original)
    assert convert(original, shapes={"x": (1, 1, 5, 6)}).plan.layers[0].cols == 30
    with pytest.raises(ValueError, match=r"shape given for input x \(\(1, 2, 5, 6\)\) must fit .* \(N, 1, H, W\)"):
        convert(original, shapes={"x": (1, 2, 5, 6)})
    with pytest.raises(ValueError, match=r"shapes must be of inputs \(x\), got z"):
        convert(original, shapes={"z": (1,)})


def test_input_without_a_shape():
    original = model("y = Neg(x)", {"x": (1, 3)})
    original.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ValueError, match="input x must have a shape"):
        convert(original)
    assert operators(convert(original, shapes={"x": (1, 3)}).model) == ["Gemm"]


def test_weights_among_the_inputs():
    original = cnn()
    original.ir_version = 3
    original.graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in WEIGHTS.items()
    )
    result = convert(original)
    assert [info.name for info in result.model.graph.input] == ["x"]


def test_nodes_in_any_order():
    original = cnn()
    nodes = list(original.graph.node)[::-1]
    del original.graph.node[:]
    original.graph.node.extend(nodes)
    assert convert(original).difference < 1e-6


def test_float64():
    original = model(
        "y = Gemm(x, w)", {"x": ("N", 3)}, {"w": random(3, 4).astype(np.float64)}, types=dict.fromkeys("xy", 11)
    )
    assert convert(original).difference < 1e-15
    narrow = convert(original, dtype=torch.float32).model
    assert narrow.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert convert(cnn(), dtype=torch.float64).model.graph.output[0].type.tensor_type.elem_type == TensorProto.DOUBLE


def test_integer_input():
    original = model("a = Cast<to = 1>(x)\ny = MatMul(a, w)", {"x": ("N", 3)}, {"w": random(3, 4)}, types={"x": 7})
    result = convert(original).model
    assert operators(result) == ["Cast", "Gemm"]
    assert difference(original, result, inputs(result, 4)) < 1e-6


def test_unsigned_output():
    original = model("y = Cast<to = 13>(x)", {"x": ("N", 3)}, types={"y": TensorProto.UINT64})
    assert convert(original).difference == 0


def test_input_without_axes():
    original = model("y = Mul(x, c)", {"x": ()}, {"c": np.float32(3)})
    assert difference(original, convert(original).model, {"x": np.array(2, np.float32)}) == 0


def test_half_precision_inside_is_compared_as_such():
    nodes = "a = Cast<to = 10>(x)\nb = Conv(a, w)\nc = Relu(b)\ny = Cast<to = 1>(c)"
    original = model(nodes, {"x": ("N", 2, 5, 5)}, {"w": random(3, 2, 3, 3).astype(np.float16)})
    result = convert(original)
    assert operators(result.model) == ["Reshape", "Gemm", "Relu", "Reshape"]
    assert result.is_batched
    assert result.difference < 1e-3  # onnxruntime leaves out one rounding to float16 in the original


def test_half_precision_becomes_layers_with_its_constants():
    original = model(
        "y = Mul(x, c)", {"x": ("N", 3)}, {"c": np.float16(3)}, types=dict.fromkeys("xy", TensorProto.FLOAT16)
    )
    result = convert(original)
    assert operators(result.model) == ["Gemm"]
    assert difference(original, result.model, inputs(result.model, 2)) == 0


def test_what_does_not_run_on_random_inputs():
    original = model("y = Gather(c, x)", {"x": (8,)}, {"c": random(1)}, types={"x": TensorProto.INT64})
    with pytest.raises(ValueError, match=r"must run on random inputs, to be compared .* out of .*bounds"):
        convert(original)


def test_selections_between_kept_nodes_need_no_matrix():
    original = model(
        "s = Sign(x)\nt = Transpose<perm = [0, 2, 1]>(s)\na = Add(t, c)\ny = Sign(a)",
        {"x": ("N", 200, 200)},
        {"c": np.float32(0.5)},
    )
    result = convert(original, max_bytes=10**6)
    assert operators(result.model) == ["Reshape", "Sign", "Gather", "Add", "Sign", "Reshape"]
    assert [row.layout for row in result.plan.layers] == ["gather"]


def test_selections_need_no_matrix_before_there_was_where():
    """Nor do they make NaN of infinities that are left out."""
    nodes = "r = Relu(x)\na = Log(r)\nb = Pad<pads = [0, -1, 0, 2]>(a)\ny = Sigmoid(b)"
    original = model(nodes, {"x": ("N", 300)}, opset=8)
    result = convert(original, opset=8, max_bytes=10**4)
    assert operators(result.model) == ["Relu", "Log", "Pad", "Gather", "Sigmoid"]
    assert difference(original, result.model, inputs(result.model, 2)) < 1e-6
    x = np.full((1, 300), -1, np.float32)
    assert runner.runner(result.model)({"x": x})[0].tolist() == runner.runner(original)({"x": x})[0].tolist()


def test_opset():
    assert convert(cnn(opset=9)).model.opset_import[0].version == 9  # MaxPool has changed since
    assert convert(cnn(opset=9), max_pool="relu").model.opset_import[0].version == 13
    assert convert(cnn(), form="mlp", opset=8).model.opset_import[0].version == 8
    assert convert(cnn(opset=17)).model.opset_import[0].version == 13
    with pytest.raises(ValueError, match=r"opset \(8\) must not change the meaning of node p \(MaxPool\)"):
        convert(cnn(), opset=8)
    with pytest.raises(ValueError, match=r"opset \(6\) must be 8 to"):
        convert(cnn(), opset=6)


@pytest.mark.parametrize("opset", [8, 11, 13, 18])
def test_every_kind_in_old_and_new_opsets(opset):
    original = model(
        "a = Abs(x)\nb = Max(a, x)\nc = Min(b, l)\nd = PRelu(c, s)\ne = LeakyRelu(d)\ny = Clip(e, l)",
        {"x": ("N", 3)},
        {"l": random(), "s": random(3)},
    )
    result = convert(original, opset=opset).model
    assert difference(original, result, inputs(result, 3)) < 1e-6


def test_the_same_bytes_each_time(tmp_path):
    for name in ("a", "b"):
        convert(cnn(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_external_data(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "LARGE", 100)
    path = tmp_path / "big.onnx"
    result = convert(cnn(), path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert difference(cnn(), onnx.load(path), inputs(result.model, 2)) < 1e-6
    assert difference(cnn(), result.model, inputs(result.model, 2)) < 1e-6
    again = convert(path, tmp_path / "again.onnx", form="mlp")
    assert difference(cnn(), again.model, inputs(again.model, 2)) < 1e-6


def test_no_model_with_the_data_of_another(tmp_path, monkeypatch):
    """Where the writer ends between the two files."""
    monkeypatch.setattr(storage, "LARGE", 100)
    path = tmp_path / "big.onnx"
    convert(cnn(), path)
    moves = []

    def replace(source, target):
        moves.append(target)
        if target == path:
            raise KeyboardInterrupt

    monkeypatch.setattr("conv2affine.onnx.exporting.storage.os.replace", replace)
    with pytest.raises(KeyboardInterrupt):
        convert(cnn(), path, form="mlp", overwrite=True)
    assert len(moves) == 2
    assert not path.exists()


def test_nothing_is_written_over_or_left_behind(tmp_path, monkeypatch):
    path = tmp_path / "out.onnx"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="is there already"):
        convert(cnn(), path)
    monkeypatch.setattr(exporter, "as_array", lambda *args: random(72, 36))
    with pytest.raises(RuntimeError, match=r"the result in .* must be valid ONNX.* please report"):
        convert(cnn(), path, overwrite=True)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    convert(cnn(), path, overwrite=True)
    onnx.checker.check_model(str(path))
    with pytest.raises(FileNotFoundError, match="the folder of"):
        convert(cnn(), tmp_path / "no" / "out.onnx")


def test_a_wrong_result_is_noticed(monkeypatch):
    as_array = exporter.as_array
    monkeypatch.setattr(exporter, "as_array", lambda *args: 1.001 * as_array(*args))
    with pytest.raises(RuntimeError, match="does not equal the original"):
        convert(cnn())


def test_memory():
    with pytest.raises(MemoryError, match=r"more than max_bytes \(1.00 kB\); the largest is that of c \(72 x 36\)"):
        convert(cnn(), max_bytes=1000)


@pytest.mark.parametrize("form", ["graph", "mlp"])
def test_plan_says_what_would_be_refused(form):
    assert not plan(cnn(), form=form).refusal
    planned = plan(cnn(), form=form, max_bytes=1000)
    with pytest.raises(MemoryError) as error:
        convert(cnn(), form=form, max_bytes=1000)
    assert str(error.value).partition("\n")[0] == planned.refusal
    assert str(planned).endswith(f"\nrefused: {planned.refusal}")


def test_in_a_notebook():
    result = convert(model("r = Relu(x)\ny = Sigmoid(r)", {"x": ("N", 2, 3)}))
    assert re.fullmatch(
        r"Conversion\(NetworkPlan\(0 layers, 2 steps, 0 entries, torch.float32\), kept 1, any number of samples, "
        r"difference \d.\de[+-]\d\d\)",
        repr(result),
    )
    html = result._repr_html_()
    assert html.startswith(result.plan._repr_html_())
    assert '<td style="text-align: left">y</td><td style="text-align: left">no rule covers the operator</td>' in html


def test_plan():
    table = plan(cnn())
    assert [row.name for row in table.rows] == ["c", "r", "p", "y"]
    assert table.layers[0].nnz == 2 * 16**2
    assert len(plan(cnn(), form="mlp").layers) == 4


@pytest.mark.parametrize(
    ("nodes", "layers"),
    [
        ("r = Relu(x)\nn = Neg(x)\np = Relu(n)\ns = Add(r, p)\ny = Add(s, one)", ["n", "y"]),
        ("p = Pad(x, pads, one)\nc = Slice(p, starts, ends)\ny = Relu(c)", ["c"]),
    ],
    ids=["bias of a sum", "constant"],
)
def test_plan_has_every_layer(nodes, layers):
    constants = {"one": np.float32(1), "pads": np.array([0, 0, 1, 0]), "starts": np.array([1]), "ends": np.array([2])}
    result = convert(model(nodes, {"x": (1, 4)}, constants))
    assert [row.name for row in result.plan.layers] == layers
    assert operators(result.model).count("Gemm") == len(layers)


@pytest.mark.parametrize(("last", "operator"), [("Relu", "Gemm"), ("Sin", "Gather")])
def test_a_constant_of_a_network_of_integers(last, operator):
    nodes = f"f = Cast<to = 1>(x)\np = Pad(f, pads, one)\nc = Slice(p, starts, ends, axes)\ny = {last}(c)"
    numbers = {"pads": [0, 0, 0, 2], "starts": [4], "ends": [6], "axes": [1]}
    constants = {"one": np.float32(1), **{name: np.array(each) for name, each in numbers.items()}}
    original = model(nodes, {"x": ("N", 4)}, constants, types={"x": TensorProto.INT64})
    result = convert(original)
    assert operators(result.model)[:2] == ["Cast", operator]
    assert difference(original, result.model, inputs(result.model, 2)) == 0


def test_an_input_may_be_an_output():
    original = model("y = Relu(x)", {"x": ("N", 2, 3)}, outputs=["y", "x"])
    result = convert(original)
    assert result.is_batched
    assert difference(original, result.model, inputs(result.model, 4)) == 0


def test_result_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        convert(cnn()).difference = 0
