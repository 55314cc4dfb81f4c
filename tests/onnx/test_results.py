"""What every result holds, whatever was kept: all outputs of its nodes, types, opset, batch, and what runs it."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import nn

from conv2affine.onnx import convert, export
from conv2affine.onnx.exporting.writer import Writer
from conv2affine.onnx.importing.upgrade import MIN_OPSET
from tests.onnx.models import cnn, difference, inputs, model, operators, random

DOUBLE = dict.fromkeys("xy", TensorProto.DOUBLE)
W, R = random(1, 12, 2), random(1, 12, 3)
# Nodes of which some results are used: nodes, shape of x, constants, the operator, and how many results it names.
PARTLY_USED = {
    "first": ("y, i = TopK(x, k)", ("N", 40), {"k": np.array([2])}, "TopK", 2),
    "second": ("v, i = TopK(x, k)\ny = Cast<to = 1>(i)", ("N", 5), {"k": np.array([2])}, "TopK", 2),
    "middle": (
        "q = QuantizeLinear(x, s)\na, b, c = Split<axis = 1>(q)\ny = DequantizeLinear(b, s)",
        ("N", 6),
        {"s": np.float32(0.1)},
        "Split",
        3,
    ),
    "last": ("a, b, y = LSTM<hidden_size = 3>(x, w, r)", (4, 1, 2), {"w": W, "r": R}, "LSTM", 3),
    "left-out": ("a,, y = LSTM<hidden_size = 3>(x, w, r)", (4, 1, 2), {"w": W, "r": R}, "LSTM", 2),
    "optional-inputs": (
        "a, y = LSTM<hidden_size = 3>(x, w, r,,, h)",
        (4, 1, 2),
        {"w": W, "r": R, "h": random(1, 1, 3)},
        "LSTM",
        2,
    ),
}


@pytest.mark.parametrize(("nodes", "shape", "constants", "kept", "count"), PARTLY_USED.values(), ids=PARTLY_USED)
def test_kept_nodes_keep_all_results(nodes, shape, constants, kept, count):
    original = model(nodes, {"x": shape}, constants, opset=14)
    result = convert(original).model
    [node] = [node for node in result.graph.node if node.op_type == kept]
    assert len(list(filter(None, node.output))) == count
    assert difference(original, result, inputs(result, 3)) < 1e-6


def test_a_split_goes_by_all_of_its_results():
    original = model("a, b, c = Split<axis = 1>(x)\ny = Relu(b)", {"x": ("N", 6)})
    result = convert(original).model
    assert operators(result) == ["Gemm", "Relu"]
    assert difference(original, result, inputs(result, 3)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("opset", range(MIN_OPSET, 25))
def test_all_that_is_written_is_valid_at_each_opset(opset, dtype):
    """Every kind of step, selections with zeros, layers, constants, and nodes on tensors of their own."""
    pad = "Pad(t, g)" if opset >= 11 else "Pad<pads = [0, 0, 0, 0, 1, 0]>(t)"
    nodes = f"""
        s = Softmax<axis = 1>(x)
        n = Neg(x)
        p = Max(s, n)
        q = Min(p, x)
        h = Max(q, e)
        i = Min(h, f)
        r = PRelu(i, c)
        l = LeakyRelu(r)
        t = Transpose<perm = [0, 2, 1]>(l)
        z = {pad}
        a = Abs(z)
        b = Relu(a)
        m = MatMul(b, w)
        y = MaxPool<kernel_shape = [2]>(m)
    """
    constants = {"c": random(3), "e": random(2, 3), "f": np.float32(0.5), "g": np.array([0, 0, 0, 0, 1, 0])}
    constants["w"] = random(2, 4)
    result = convert(model(nodes, {"x": ("N", 2, 3)}, constants, opset=opset), opset=opset, dtype=dtype)
    assert set(operators(result.model)) >= {"Softmax", "Max", "Min", "Abs", "Gather", "Gemm", "MaxPool"}
    onnx.checker.check_model(result.model, full_check=True)
    assert result.is_batched


def test_an_opset_before_broadcasting_is_raised():
    """Max has broadcast since 8, which only adds to 7."""
    for last in ("y = Clip<min = -0.5, max = 0.5>(a)", "c = Clip<min = -0.5>(a)\ny = MaxPool<kernel_shape = [2]>(c)"):
        original = model(f"a = Softmax<axis = 1>(x)\n{last}", {"x": ("N", 2, 3)}, opset=7)
        result = convert(original)
        assert result.model.opset_import[0].version == MIN_OPSET
        assert difference(original, result.model, inputs(result.model, 3)) < 1e-6


class Mixed(nn.Module):
    """Steps whose operators came with different opsets, and a maximum of windows."""

    def forward(self, x):
        x = nn.functional.mish(nn.functional.hardswish(x) * x.sigmoid() + x.tanh())
        return nn.functional.max_pool1d(x, 2)


@pytest.mark.parametrize("opset", [None, *range(18, 25)])
def test_exports_are_valid_at_each_opset(opset):
    result = export(Mixed(), torch.randn(2, 3, 6), opset=opset).model
    assert result.opset_import[0].version == (opset or 18)
    onnx.checker.check_model(result, full_check=True)


SLOPES = {"leaky": "y = LeakyRelu<alpha = 0.1>(x)", "prelu": "y = PRelu(x, s)", "prelus": "y = PRelu(x, t)"}


@pytest.mark.parametrize("form", ["graph", "mlp"])
@pytest.mark.parametrize("nodes", SLOPES.values(), ids=SLOPES)
def test_slopes_of_float64_are_exact(nodes, form):
    constants = {"s": np.array([-0.1]), "t": np.array([0.1, 2.7, -1 / 3])}
    original = model(nodes, {"x": ("N", 3)}, constants, types=DOUBLE)
    result = convert(original, form=form)
    assert result.difference < 1e-15
    assert result.model.graph.output[0].type.tensor_type.elem_type == TensorProto.DOUBLE


def test_a_float64_file_is_checked_as_such(monkeypatch):
    """By rounding to float32, constants would be off by 1e-8."""
    original = model("y = Gemm(x, w)", {"x": ("N", 3)}, {"w": random(3, 4) / np.float64(3)}, types=DOUBLE)
    constant = Writer.constant
    monkeypatch.setattr(
        Writer, "constant", lambda self, wish, array: constant(self, wish, np.float64(np.float32(array)))
    )
    with pytest.raises(RuntimeError, match="does not equal the original"):
        convert(original)


# Operators that have no float64, in the standard or in onnxruntime.
NO_FLOAT64 = {
    "Celu": ("y = Celu(x)", "Celu.* has unsupported type: tensor.double."),
    "LRN": ("y = LRN<size = 3>(x)", "onnxruntime must run the result .*LRN"),
    "Hardmax": ("y = Hardmax(x)", "onnxruntime must run the result .*Hardmax"),
    "QuantizeLinear": ("q = QuantizeLinear(x, s)\ny = DequantizeLinear(q, s)", "QuantizeLinear.*unsupported type"),
}


@pytest.mark.parametrize(("nodes", "message"), NO_FLOAT64.values(), ids=NO_FLOAT64)
def test_what_has_no_float64_is_refused(nodes, message):
    original = model(nodes, {"x": ("N", 3, 2, 2)}, {"s": np.float32(0.1)})
    convert(original)
    with pytest.raises(NotImplementedError, match=f"{message}.*; choose another dtype or opset"):
        convert(original, dtype=torch.float64)


def test_arguments_that_are_float32_in_any_file_stay_so():
    nodes = 'y = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(x, r, s)'
    constants = {"r": np.array([0, 0, 0, 1, 1, 0.5]), "s": np.float32([1, 1, 2])}
    result = convert(model(nodes, {"x": (1, 1, 4)}, constants, types=DOUBLE)).model
    types = {tensor.name: tensor.data_type for tensor in result.graph.initializer}
    assert types == {"y.1": TensorProto.DOUBLE, "y.2": TensorProto.FLOAT}


def test_onnxruntime_runs_the_result_if_it_runs_the_source(monkeypatch):
    """Nor is a result published that only onnx.reference runs."""
    original = model("y = Sigmoid(x)", {"x": ("N", 3)})
    monkeypatch.setattr("conv2affine.onnx.pipeline.choose_opset", lambda *args: onnx.defs.onnx_opset_version() - 1)
    monkeypatch.setattr("onnxruntime.InferenceSession", only_below(onnx.defs.onnx_opset_version() - 1))
    with pytest.raises(NotImplementedError, match=r"onnxruntime must run the result .* does not: too new"):
        convert(original)


def only_below(opset):
    """A session of onnxruntime that takes older files only."""
    session = onnxruntime.InferenceSession

    def make(source, *args, **options):
        proto = onnx.load(source) if isinstance(source, str) else onnx.ModelProto.FromString(source)
        if proto.opset_import[0].version >= opset:
            raise RuntimeError("too new")
        return session(source, *args, **options)

    return make


# Why a model takes one sample only: nodes, and the reason.
ONE_SAMPLE = {
    "rows": ("r = Reshape(x, s)\ny = MatMul(r, w)", "output y has 2 rows for each sample"),
    "rows-kept": ("r = Reshape(x, s)\ny = Softmax(r)", "output y has 2 rows for each sample"),
    "numbers-for-each": ("y = Add(x, c)", r"y has shape \(3, 6\) for 3 samples, and \(3, 6\) for one"),
    "fixed-size": ("y = Reshape(x, t)", "it does not run on 3 samples"),
    "moved-across": ("a = Transpose<perm = [1, 0]>(x)\nb = Reshape(a, q)\ny = Neg(b)", "y depends for each sample"),
    "mixed-by-the-last": ("y = Softmax<axis = 0>(x)", "y depends for each sample on the others"),
    "mixed-inside": (
        "m = ReduceMean<axes = [0]>(x)\na = Sub(x, m)\ny = Add(a, x)",
        r"m has shape \(1, 6\) for 3 samples",
    ),
    "mixed-in-a-kept-node": ("m = Softmax<axis = 0>(x)\na = Relu(m)\ny = Softmax(a)", "m depends for each sample"),
    "constant-of-the-shape-of-a-batch": (
        "n = Shape(x)\nz = ConstantOfShape(n)\nv, i = TopK(x, k)\ny = ScatterElements<axis = 1>(z, i, v)",
        r"y \(ScatterElements\) has constants of the shape of one sample",
    ),
    "written-to-the-first": ("a = ScatterElements<axis = 1>(x, p, u)\ny = Min(a, l)", "a depends for each sample"),
    "written-to-the-first-column": (
        "d = Transpose<perm = [1, 0]>(x)\na = ScatterElements(d, p, u)\nb = Transpose<perm = [1, 0]>(a)\ny = Min(b, l)",
        "a depends for each sample",
    ),
    "written-to-the-first-of-all": (
        "f = Reshape(x, e)\na = ScatterElements(f, g, h)\nb = Reshape(a, q)\ny = Min(b, l)",
        "a depends for each sample",
    ),
    "reads-the-first": (
        "a = Gather(x, g)\nb = Sub(a, o)\nd = Relu(b)\ny = Add(x, d)",
        r"a has shape \(1, 6\) for 3 samples, and \(1, 6\) for one",
    ),
    "adds-all": (
        "a = ReduceSum(x, g)\nb = Sub(a, o)\nd = Relu(b)\ny = Add(x, d)",
        r"a has shape \(1, 6\) for 3 samples",
    ),
    "elsewhere": (
        "a = Transpose<perm = [1, 0]>(x)\nb = Softmax<axis = 0>(a)\ny = Transpose<perm = [1, 0]>(b)",
        r"a has shape \(6, 3\) for 3 samples, and \(6, 1\) for one",
    ),
}


@pytest.mark.parametrize(("nodes", "reason"), ONE_SAMPLE.values(), ids=ONE_SAMPLE)
def test_why_a_result_takes_one_sample(nodes, reason):
    constants = {
        "s": np.array([-1, 3]),
        "t": np.array([1, 6]),
        "q": np.array([-1, 6]),
        "w": random(3, 4),
        "c": random(3, 6),
    }
    constants |= {"k": np.array([2]), "p": np.array([[0]]), "u": np.float32([[9]]), "l": np.float32(-9)}
    constants |= {"e": np.array([-1]), "g": np.array([0]), "h": np.float32([9]), "o": np.float32(1e3)}
    original = model(nodes, {"x": ("N", 6)}, constants)
    result = convert(original)
    assert not result.is_batched
    assert re.match(reason, result.static)
    sizes = result.model.graph.input[0].type.tensor_type.shape.dim[0]
    assert sizes.dim_value == 1
    assert difference(original, result.model, inputs(result.model)) < 1e-6


@pytest.mark.parametrize(("size", "advice"), [(1, ""), (2, " (at 2: if that is a batch, export for 1, which makes")])
def test_a_fixed_batch_is_one_sample(size, advice):
    result = convert(model("y = Relu(x)", {"x": (size, 6)}))
    assert result.static.partition(" smaller")[0] == f"the first sizes of its inputs are fixed{advice}"


def test_rows_of_samples_inside_are_no_reason():
    nodes = "r = Reshape(x, s)\nm = Softmax(r)\nk = MatMul(m, w)\ny = Reshape(k, t)"
    constants = {"s": np.array([-1, 3]), "w": random(3, 4), "t": np.array([-1, 8])}
    original = model(nodes, {"x": ("N", 6)}, constants)
    result = convert(original)
    assert result.is_batched
    assert difference(original, result.model, inputs(result.model, 4)) < 1e-6


@pytest.mark.parametrize("last", ["y = Identity(d)", "y = Sin(d)"], ids=["affine", "kept"])
def test_what_rounding_leaves_of_a_sum_is_no_reason(last):
    """It is another number for each batch, and as large as the largest element."""
    constants = {"v": random(64, 64), "w": random(64, 64), "vw": random(64, 64) @ random(64, 64)}
    original = model(
        f"a = MatMul(x, v)\nb = MatMul(a, w)\nc = MatMul(x, vw)\nd = Sub(b, c)\n{last}", {"x": ("N", 64)}, constants
    )
    assert not convert(original).static


def test_a_wrong_batch_is_no_reason_to_take_one_sample(monkeypatch):
    """What is wrong for several samples only is an error, not one that is written for one sample."""
    monkeypatch.setattr("conv2affine.onnx.exporting.values.Values.sizes", lambda self, shape: list(shape))
    with pytest.raises(RuntimeError, match="onnxruntime cannot run the model"):
        convert(cnn())


def test_an_exported_step_whose_batch_is_elsewhere_takes_one_sample():
    class Elsewhere(nn.Module):
        def forward(self, x):
            return x.movedim(0, 1).softmax(0).movedim(1, 0)

    result = export(Elsewhere(), torch.randn(3, 4))
    assert "does not have the batch along its first axis" in result.static


@pytest.mark.parametrize("form", ["graph", "mlp"])
def test_sums_may_cancel_in_a_single_layer(form):
    """The roundings of a sum are those of its terms, however small it is."""
    layer = nn.Linear(1024, 1024)
    assert export(layer, torch.ones(1, 1024), form=form).difference < 1e-5
    weight = layer.weight.detach().T.numpy()
    assert convert(model("y = MatMul(x, w)", {"x": ("N", 1024)}, {"w": weight}), form=form).difference < 1e-5


OUTPUTS = {"twice": ["y", "y"], "an-input": ["y", "x"], "an-input-first": ["x", "y"], "an-input-alone": ["x"]}


@pytest.mark.parametrize("form", ["graph", "mlp"])
@pytest.mark.parametrize("shape", [(4,), (2, 3)], ids=str)
@pytest.mark.parametrize("names", OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_that_have_a_name_already(names, shape, form):
    original = model("y = Relu(x)", {"x": ("N", *shape)})
    infos = {info.name: info for info in (*original.graph.input, *original.graph.output)}
    del original.graph.output[:]
    original.graph.output.extend(infos[name] for name in names)
    result = convert(original, form=form)
    assert [info.name for info in result.model.graph.output] == names
    assert difference(original, result.model, inputs(result.model, 3)) == 0


def test_a_double_result_has_numbers_that_vanish_in_float32():
    """exp(-107) is 3e-47."""
    original = model("z = Add(x, c)\ny = Softmax<axis = 1>(z)", {"x": ("N", 2)}, {"c": np.float32([0, -107])})
    assert convert(original, dtype=torch.float64).kept
