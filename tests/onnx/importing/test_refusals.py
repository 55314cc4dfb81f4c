"""ONNX files, nodes and arguments that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from conv2affine.onnx import convert, export
from tests.onnx.models import cnn, model, random


def broken(change) -> ModelProto:
    original = cnn()
    change(original)
    return original


SPARSE = helper.make_sparse_tensor(
    helper.make_tensor("values", TensorProto.FLOAT, [1], [1.0]),
    helper.make_tensor("indices", TensorProto.INT64, [1], [0]),
    [4],
)
REFUSED = {
    "empty": (lambda m: m.Clear(), ValueError, "the model must be an ONNX model with outputs, and has none"),
    "cycle": (lambda m: m.graph.node[0].input.__setitem__(0, "y"), ValueError, "must not depend on their own results"),
    "unknown-operator": (
        lambda m: setattr(m.graph.node[1], "op_type", "Rely"),
        ValueError,
        "No Op registered for Rely",
    ),
    "unknown-attribute": (
        lambda m: m.graph.node[1].attribute.append(helper.make_attribute("slope", 1)),
        ValueError,
        "Unrecognized attribute: slope",
    ),
    "other-domain": (lambda m: setattr(m.graph.node[1], "domain", "com.mine"), ValueError, "com.mine"),
    "opset": (lambda m: setattr(m.opset_import[0], "version", 999), ValueError, r"opset \(999\) must be 1 to"),
    "no-opset": (lambda m: m.ClearField("opset_import"), ValueError, r"opset \(0\) must be 1 to"),
    "weight-of-wrong-shape": (
        lambda m: m.graph.initializer[2].CopyFrom(numpy_helper.from_array(random(17, 4), "v")),
        ValueError,
        "Gemm node y must follow the rules",
    ),
    "truncated-weight": (lambda m: setattr(m.graph.initializer[0], "raw_data", b"123"), ValueError, "raw_data size"),
    "size-0": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 0),
        ValueError,
        "sizes of input x must be at least 1, got 0",
    ),
    "sparse-constant": (
        lambda m: m.graph.node[1].CopyFrom(helper.make_node("Constant", [], ["r"], sparse_value=SPARSE)),
        NotImplementedError,
        "Constant node r: sparse_value must be written as a dense tensor",
    ),
    "no-input": (lambda m: m.graph.node[0].input.__setitem__(0, "z"), ValueError, "z"),
}


@pytest.mark.parametrize(("change", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(change, error, message):
    with pytest.raises(error, match=message):
        convert(broken(change))


NODES_REFUSED = {
    "random": ("n = RandomNormalLike(x)\ny = Add(x, n)", ValueError, "RandomNormalLike node n depends on chance"),
    "dropout-in-training": ("y = Dropout(x, r, t)", ValueError, "Dropout node y depends on chance"),
    "batch-norm-in-training": (
        "y, a, b, c, d = BatchNormalization(x, q, q, q, q)",
        ValueError,
        "BatchNormalization node y depends on chance or on its batch",
    ),
    "dynamic-shape": ("i = NonZero(x)\ny = Cast<to = 1>(i)", NotImplementedError, "NonZero node i: the shape of i"),
    "huge": ("y = Expand(x, s)", ValueError, "must have at most 134217728 elements"),
    "sequence": (
        "s2 = SequenceConstruct(x)\ny = ConcatFromSequence<axis = 0>(s2)",
        NotImplementedError,
        "SequenceConstruct",
    ),
    "subgraph": (
        "y = If<then_branch = g () => (float[1, 3] a) { a = Neg(x) }, "
        "else_branch = h () => (float[1, 3] b) { b = Abs(x) }>(t)",
        NotImplementedError,
        "If node y: subgraphs",
    ),
    "nan-spreads": (
        "d = Sub(x, q)\na = Sqrt(d)\nb = Slice(a, k, l, k)\ny = MatMul(b, v)",
        ValueError,
        "output 0 does not have the infinities or NaN of the original: .*merge='never'",
    ),
    "shapes-do-not-fit": ("y = PRelu(x, p)", ValueError, "PRelu node y must follow the rules of its operator"),
    "no-such-axis": ("y = ScatterElements<axis = 5>(x, at, x)", ValueError, "node y must follow .*index out of range"),
    "no-numpy-type": ("y = Cast<to = 8>(x)", NotImplementedError, "output y .* is of string; put a Cast"),
    "empty-result": (
        "y = Sigmoid(z)\nz = Slice(x, o, o)",
        NotImplementedError,
        r"must have elements, got shape \(0, 3\)",
    ),
}


@pytest.mark.parametrize(("nodes", "error", "message"), NODES_REFUSED.values(), ids=NODES_REFUSED)
def test_refused_nodes(nodes, error, message):
    constants = {
        "r": np.float32(0.5),
        "t": np.array(True),
        "s": np.array([2**40, 3]),
        "o": np.array([0]),
        "at": np.array([[0, 0, 0]]),
        "p": random(2),
        "q": random(3),
        "k": np.array([1]),
        "l": np.array([2]),
        "v": random(1, 2),
    }
    with pytest.raises(error, match=message):
        convert(model(nodes, {"x": (1, 3)}, constants))


def test_a_batch_that_is_symbolic_and_takes_one_number_only():
    """As exporters write what `len(x)` gives."""
    nodes, constants = "y = Concat<axis = 1>(c, x)", {"c": random(2, 1)}
    advice = r"read for one sample: if it was exported for N only, pass shapes={'x': \(N, 3\)} \(--shape\)"
    with pytest.raises(ValueError, match=rf"Concat node y must follow .*; it was {advice}"):
        convert(model(nodes, {"x": ("N", 3)}, constants))
    assert not convert(model(nodes, {"x": ("N", 3)}, constants), shapes={"x": (2, 3)}).is_batched


@pytest.mark.parametrize("form", ["graph", "mlp"])
def test_what_no_form_keeps_is_not_said_to_be_kept(form):
    nodes, error, message = NODES_REFUSED["random"]
    with pytest.raises(error, match=message):
        convert(model(nodes, {"x": (1, 3)}), form=form)
    original = cnn()
    original.opset_import.add(domain="com.mine", version=1)
    original.graph.node[1].op_type, original.graph.node[1].domain = "Mine", "com.mine"
    with pytest.raises(NotImplementedError, match=r"operators of domain com\.mine are not supported"):
        convert(original, form=form)


MLP_REFUSED = {
    "not-piecewise-linear": ("y = Tanh(x)", {"x": (1, 3)}, ["y"], NotImplementedError, "y: Tanh must be affine or"),
    "attribute": (
        "a, i = MaxPool<kernel_shape = [2], storage_order = 1>(x)\ny = Cast<to = 1>(i)",
        {"x": (1, 1, 3)},
        ["y"],
        NotImplementedError,
        "a: MaxPool must be .* i is of type int64",
    ),
}


@pytest.mark.parametrize(("nodes", "shapes", "outputs", "error", "message"), MLP_REFUSED.values(), ids=MLP_REFUSED)
def test_refused_as_mlp(nodes, shapes, outputs, error, message):
    with pytest.raises(error, match=message):
        convert(model(nodes, shapes, outputs=outputs), form="mlp")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "cnn"}, r"form \('cnn'\) must be one of"),
        ({"merge": "all"}, r"merge \('all'\)"),
        ({"max_pool": "no"}, r"max_pool \('no'\)"),
        ({"form": "mlp", "merge": "always"}, r"merge \('always'\) must be left out in form 'mlp'"),
        ({"opset": "13"}, r"opset \('13'\) must be 8 to"),
        ({"max_bytes": -1}, r"max_bytes \(-1\) must be >= 0"),
        ({"dtype": torch.float16}, r"dtype \(torch.float16\) must be torch.float32 or torch.float64"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        convert(cnn(), **options)


@pytest.mark.parametrize("source", [None, b"model", cnn().graph], ids=["none", "bytes", "graph"])
def test_a_source_of_another_type_is_refused(source):
    with pytest.raises(TypeError, match=r"source must be an onnx\.ModelProto or the path of a file, got"):
        convert(source)


def test_a_module_is_exported():
    with pytest.raises(
        TypeError, match=r"got Linear; for a module, call conv2affine\.onnx\.export, conv2affine\.plan or"
    ):
        convert(torch.nn.Linear(2, 3), "x.onnx")
    with pytest.raises(TypeError, match="path must be the path of a file, got Tensor; it is the last argument"):
        export(torch.nn.Linear(2, 3), "x.onnx", torch.rand(1, 2))


@pytest.mark.parametrize("shapes", [[1, 1, 6, 6], {"x": 6}, {"x": "1166"}, {"x": (1.0, 1, 6, 6)}], ids=str)
def test_shapes_that_are_no_integers_are_refused(shapes):
    with pytest.raises(TypeError, match=r"shapes \(.*\) must be sizes by name, as in {'x': \(1, 3, 32, 32\)}"):
        convert(cnn(), shapes=shapes)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x01\x12"], ids=["empty", "text", "truncated"])
def test_not_a_model(tmp_path, content):
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"must (be|hold) an ONNX"):
        convert(path)


def test_truncated_file(tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(cnn().SerializeToString()[:-20])
    with pytest.raises(ValueError, match="must be an ONNX file, and is not, or is truncated"):
        convert(path)


def test_a_pointer_in_place_of_a_file(tmp_path):
    path = tmp_path / "x.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(ValueError, match=r"must be an ONNX file, .*; it is a pointer to one: run git lfs pull"):
        convert(path)


def test_huge_file(tmp_path):
    path = tmp_path / "x.onnx"
    with path.open("wb") as file:
        file.truncate(3 * 2**30)  # sparse
    with pytest.raises(ValueError, match="must be at most 2147483647 bytes"):
        convert(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link", "missing", ""])
def test_external_data_outside_of_the_folder(tmp_path, location):
    (tmp_path / "secret").write_bytes(bytes(8 * 18))
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    original = cnn()
    tensor = original.graph.initializer[2]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path = folder / "x.onnx"
    path.write_bytes(original.SerializeToString())
    with pytest.raises(ValueError, match=r"external data of tensor v \(.*\) must"):
        convert(path)
