"""Files as people hold them: packed, of any opset and batch size, half floats, pixels; with and without onnxruntime."""

from __future__ import annotations

import gzip
import sys

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from conv2affine.onnx import convert
from conv2affine.onnx.running.runner import runner
from tests.onnx.models import CNN, WEIGHTS, cnn, difference, inputs, model, operators, random

BFLOAT16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
HALVES = {"float16": (TensorProto.FLOAT16, np.float16), "bfloat16": (TensorProto.BFLOAT16, BFLOAT16)}
FORMS = ("graph", "mlp")


def test_packed(tmp_path):
    path = tmp_path / "cnn.onnx.gz"
    path.write_bytes(gzip.compress(cnn().SerializeToString()))
    assert convert(path).model == convert(cnn()).model


PACKED = {
    "truncated": (lambda data: gzip.compress(data)[:-20], "must be a gzip file, and is broken"),
    "bomb": (lambda data: gzip.compress(bytes(2**28)), "must be at most 134217728 bytes when unpacked"),
    "no-model": (lambda data: gzip.compress(b"none"), "must be an ONNX file"),
}


@pytest.mark.parametrize(("pack", "message"), PACKED.values(), ids=PACKED)
def test_packed_and_broken(tmp_path, pack, message):
    path = tmp_path / "cnn.onnx.gz"
    path.write_bytes(pack(cnn().SerializeToString()))
    with pytest.raises(ValueError, match=message):
        convert(path)


@pytest.mark.parametrize("size", [-1, 0])
def test_open_batch_size(size):
    """As tools write it that have no names for sizes."""
    original = cnn()
    for info in (*original.graph.input, *original.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = size
    result = convert(original)
    assert result.is_batched
    assert difference(cnn(), result.model, {"x": random(5, 1, 6, 6)}) < 1e-6


def test_output_without_a_type():
    original = cnn()
    original.graph.output[0].ClearField("type")
    assert convert(original).model == convert(cnn()).model


def old(nodes: str, constants: dict[str, np.ndarray], opset: int) -> ModelProto:
    """A model of x, of shape (N, 2, 3, 3), by an old opset, in which initializers are inputs."""
    shapes = {"x": ("N", 2, 3, 3), **{name: array.shape for name, array in constants.items()}}
    graph = helper.make_graph(
        [parser.parse_node(line) for line in nodes.splitlines()],
        "old",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", 2, 3, 3))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3)


S, Q, Z = np.float32([0.5, -2]), np.float32([1, 2, -3]), random(2, 3)
CHANNELS = S[:, None, None]
OLD = {
    "axis-1": ("y = Add<broadcast = 1, axis = 1>(x, s)", lambda x: x + CHANNELS),
    "axis-2": ("y = Sub<broadcast = 1, axis = 2>(x, q)", lambda x: x - Q[:, None]),
    "axis-of-two": ("y = Div<broadcast = 1, axis = 1>(x, z)", lambda x: x / Z[..., None]),
    "axis-negative": ("y = Add<broadcast = 1, axis = -1>(x, q)", lambda x: x + Q),
    "suffix": ("y = Mul<broadcast = 1>(x, q)", lambda x: x * Q),
    "prelu": ("y = PRelu(x, s)", lambda x: np.where(x > 0, x, CHANNELS * x)),
    "clip": ("y = Clip<max = 0.5>(x)", lambda x: np.minimum(x, 0.5)),
    "concat": (
        "r = Relu(x)\nt = Concat<axis = 1>(x, r)\ny = Slice<axes = [1], starts = [1], ends = [3]>(t)",
        lambda x: np.stack([x[:, 1], np.maximum(x[:, 0], 0)], 1),
    ),
}


@pytest.mark.parametrize("opset", range(1, 7))
@pytest.mark.parametrize(("nodes", "function"), OLD.values(), ids=OLD)
def test_old_opset(nodes, function, opset):
    """Compared with NumPy: onnx.version_converter aligns along the wrong axis."""
    result = convert(
        old(nodes, {name: array for name, array in zip("sqz", (S, Q, Z), strict=True) if name in nodes}, opset)
    )
    x = random(4, 2, 3, 3)
    [y] = runner(result.model)({"x": x})
    np.testing.assert_allclose(y, function(x), rtol=1e-6)


def test_old_output_without_a_shape():
    original = old("y = Relu(x)", {}, 6)
    original.graph.output[0].type.tensor_type.ClearField("shape")
    assert convert(original).is_batched


@pytest.mark.parametrize("op_type", ["BatchNormalization", "Dropout"])
def test_old_training_is_refused(op_type):
    args = "x, s, s, s, s" if op_type == "BatchNormalization" else "x"
    with pytest.raises(ValueError, match=f"{op_type} node y must be for inference, with is_test = 1"):
        convert(old(f"y = {op_type}({args})", {"s": S} if "s" in args else {}, 6))


def test_parts_that_are_left_out():
    """The original ends the process in onnxruntime."""
    result = convert(model("a, , b = Split<axis = 1>(x)\ny = Sub(b, a)", {"x": ("N", 6)}))
    x = random(4, 6)
    [y] = runner(result.model)({"x": x})
    np.testing.assert_array_equal(y, x[:, 4:] - x[:, :2])


def half(kind: str) -> ModelProto:
    elem_type, dtype = HALVES[kind]
    weights = {name: array.astype(dtype) for name, array in WEIGHTS.items()}
    return model(CNN, {"x": ("N", 1, 6, 6)}, weights, types={"x": elem_type, "y": elem_type}, opset=22)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", HALVES)
def test_half_floats(kind, form):
    """As half models in PyTorch: layers of that type, and nothing kept."""
    result = convert(half(kind), form=form)
    types = {tensor.data_type for tensor in result.model.graph.initializer if len(tensor.dims) == 2}
    assert types == {HALVES[kind][0]} == {result.model.graph.input[0].type.tensor_type.elem_type}
    assert not result.kept
    assert "Conv" not in operators(result.model)
    wide = convert(half(kind), form=form, dtype=torch.float32).model
    x = random(3, 1, 6, 6).astype(HALVES[kind][1])
    [expected], [y] = runner(wide)({"x": x.astype(np.float32)}), runner(result.model)({"x": x})
    np.testing.assert_allclose(y.astype(np.float32), expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("kind", HALVES)
def test_half_floats_inside(kind):
    """Inputs and outputs in float32, as mixed precision has it: so are the layers."""
    elem_type, dtype = HALVES[kind]
    text = f"c = Cast<to = {elem_type}>(x)\nr = Conv(c, w)\ns = Softmax(r)\ny = Cast<to = 1>(s)"
    original = model(text, {"x": ("N", 1, 6, 6)}, {"w": WEIGHTS["w"].astype(dtype)}, opset=15)
    result = convert(original)
    assert list(result.kept) == ["s"]
    assert {tensor.data_type for tensor in result.model.graph.initializer if len(tensor.dims) == 2} == {
        TensorProto.FLOAT
    }


PIXELS = "i = Cast<to = 1>(x)\nd = Div(i, k)\n" + CNN.strip().replace("(x,", "(d,")


@pytest.mark.parametrize(
    "elem_type", [TensorProto.UINT8, TensorProto.INT64, TensorProto.BOOL], ids=["uint8", "int64", "bool"]
)
def test_a_chain_begins_with_what_pixels_are_cast_to(elem_type):
    original = model(PIXELS, {"x": ("N", 1, 6, 6)}, {**WEIGHTS, "k": np.float32(255)}, types={"x": elem_type})
    chain, graph = convert(original, form="mlp"), convert(original)
    assert chain.model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert graph.model.graph.input[0].type.tensor_type.elem_type == elem_type
    assert "Cast" in operators(graph.model)
    x = inputs(graph.model, 2)["x"]
    [expected], [y] = runner(original)({"x": x}), runner(chain.model)({"x": x.astype(np.float32)})
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


ROUNDINGS = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")


@pytest.mark.parametrize("scale", [0.5, 1.7, 2, 3])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_resize_as_tensorflow_once_did(rounding, scale):
    attributes = (
        f'coordinate_transformation_mode = "tf_half_pixel_for_nn", mode = "nearest", nearest_mode = "{rounding}"'
    )
    constants = {"r": np.zeros(0, np.float32), "s": np.float32([1, 1, scale])}
    original = model(f"y = Resize<{attributes}>(x, r, s)", {"x": ("N", 1, 6)}, constants, opset=11)
    result = convert(original, form="mlp")
    assert difference(original, result.model, {"x": random(2, 1, 6)}) < 1e-6


FOLDED = {
    "nonzero": "i = NonZero(k)\nt = Transpose<perm = [1, 0]>(i)\ny = Gather<axis = 1>(x, t)",
    "compress": "c = Compress(v, m)\ny = Gather<axis = 1>(x, c)",
    "unique": "u = Unique(v)\ny = Gather<axis = 1>(x, u)",
    "where-and-range": "n = Size(v)\nz = Sub(n, n)\none = Div(n, n)\nr = Range(z, n, one)\ny = Gather<axis = 1>(x, r)",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nodes", FOLDED.values(), ids=FOLDED)
def test_constants_are_folded_before_shapes_are_inferred(nodes, form):
    constants = {"k": np.float32([0, 1, 1, 0]), "m": np.array([True, False, True]), "v": np.array([2, 2, 3])}
    original = model(nodes, {"x": ("N", 4)}, constants)
    assert difference(original, convert(original, form=form).model, {"x": random(3, 4)}) == 0


@pytest.fixture
def without_onnxruntime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


@pytest.mark.usefixtures("without_onnxruntime")
@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15])
def test_batch_norm_without_onnxruntime(opset):
    """onnx.reference mixes the samples below opset 14."""
    constants = {"s": random(2), "b": random(2), "m": random(2), "v": np.abs(random(2)), "w": WEIGHTS["w"]}
    text = "c = Conv(x, w)\ny = BatchNormalization(c, s, b, m, v)"
    result = convert(model(text, {"x": ("N", 1, 6, 6)}, constants, opset=opset))
    assert result.is_batched
    assert operators(result.model) == ["Reshape", "Gemm", "Reshape"]


@pytest.mark.usefixtures("without_onnxruntime")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [cnn, lambda: half("float16"), lambda: half("bfloat16")], ids=["float32", *HALVES])
def test_without_onnxruntime(make, form):
    assert runner(make()).function.__qualname__.startswith("_reference")
    assert not convert(make(), form=form).kept


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool"])
def test_what_onnxruntime_takes_and_cannot_run(op_type):
    """It pools along three axes at most; onnx.reference does what it cannot."""
    original = model(f"y = {op_type}<kernel_shape = [2, 2, 2, 2]>(x)", {"x": ("N", 1, 3, 3, 3, 3)})
    run = runner(original)
    x = random(2, 1, 3, 3, 3, 3)
    [y] = run({"x": x})
    assert "pool" in run.refusal.lower()
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2, 2, 2), (2, 3, 4, 5)).reshape(*y.shape, 16)
    expected = windows.max(-1) if op_type == "MaxPool" else windows.mean(-1)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert difference(original, convert(original).model, {"x": x}) < 1e-6
