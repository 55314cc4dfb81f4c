"""ONNX files for a box, and their bounds."""

import json

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from conv2affine import check, to_mlp
from conv2affine.cli import app
from conv2affine.network.proof.box import box_in_words
from conv2affine.onnx import convert, export, read_spec
from tests.onnx.models import model, random

onnxruntime = pytest.importorskip("onnxruntime")

NODES = """
a = Conv(x, w)
b = Relu(a)
c = MaxPool<kernel_shape = [2, 2], strides = [1, 1]>(b)
d = Flatten(c)
y = Gemm<transB = 1>(d, v)
"""


def small(batch="N"):
    return model(NODES, {"x": (batch, 1, 6, 6)}, {"w": random(2, 1, 3, 3), "v": random(3, 18, seed=1)})


def every_layer(proto, x):
    """What each layer computes, by name."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    names = [node.output[0] for node in proto.graph.node if node.op_type == "Gemm"]
    shown = {value.name for value in proto.graph.output}
    kind = proto.graph.input[0].type.tensor_type.elem_type
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(n, kind, None) for n in names if n not in shown)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


@pytest.mark.parametrize("flat", [False, True], ids=["shaped", "flat"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bounds_are_by_the_names_of_the_layers(dtype, flat):
    proto = small()
    low = np.linspace(0, 1, 36).reshape(1, 6, 6)
    high = low + 0.1
    result = convert(proto, form="mlp", box=(low, high), flat=flat, dtype=dtype)
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.uniform(low, high, (500, 1, 6, 6)), [low, high]])
    x = torch.from_numpy(x).to(dtype).numpy()
    got = every_layer(result.model, x.reshape(len(x), -1) if flat else x)
    assert got.keys() == result.bounds.keys()
    for name, (least, greatest) in result.bounds.items():
        assert (got[name] >= least).all()
        assert (got[name] <= greatest).all()
    full = convert(proto, form="mlp").plan
    assert sum(len(least) for least, _ in result.bounds.values()) < sum(row.rows for row in full.rows)
    [original] = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x.astype(np.float32)})
    np.testing.assert_allclose(list(got.values())[-1], original, atol=1e-5)


def test_a_fixed_batch_is_compared_one_by_one():
    assert convert(small(batch=1), form="mlp", box=(0, 1)).difference < 1e-5


def test_boxes_by_name():
    proto = model("c = Sub(a, b)\ny = Relu(c)", {"a": ("N", 2), "b": ("N", 2)})
    result = convert(proto, form="mlp", box=({"b": 0, "a": [2, -3]}, {"b": 1, "a": [3, -2]}))
    assert [len(low) for low, _ in result.bounds.values()] == [2]
    with pytest.raises(ValueError, match=r"box\[0\] must have the names of the inputs \(a, b\), got a"):
        convert(proto, form="mlp", box=({"a": 0}, 1))


def test_the_file_says_the_box():
    def metadata(result):
        return json.loads({each.key: each.value for each in result.model.metadata_props}["conv2affine.box"])

    assert metadata(convert(small(), form="mlp", box=(0, 1))) == {"low": [0.0] * 36, "high": [1.0] * 36}
    vectors = np.arange(36) / 36, np.arange(36) / 18  # as of a case of a specification
    assert metadata(convert(small(), form="mlp", box=vectors)) == {"low": [*vectors[0]], "high": [*vectors[1]]}
    large = model("y = Relu(x)", {"x": ("N", 100)})
    first, second = (metadata(convert(large, form="mlp", box=(0, high))) for high in (1, 2))
    assert first["box"] == "100 inputs from 0 to 1, each within 1"
    assert first["sha256"] != second["sha256"]


@pytest.mark.parametrize("other", [None, (0, 1), (-3, 3)], ids=str)
@pytest.mark.parametrize("size", [36, 400])
def test_a_check_elsewhere_names_the_box(size, other, tmp_path):
    network, chain = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save_model(model("a = Relu(x)\ny = Sub(x, a)", {"x": ("N", size)}), network)
    convert(network, chain, form="mlp", box=(0, 1))
    box = () if other is None else ("--box", *map(str, other))
    printed = CliRunner().invoke(app, ["check", str(network), str(chain), *box]).output
    note = f"b is for {size} inputs from 0 to 1, each within 1, and another network elsewhere; pass that box"
    assert (note in printed) == ("different" in printed) == (other != (0, 1))
    assert "different" not in CliRunner().invoke(app, ["check", str(chain), str(chain), *box]).output


def test_a_check_of_a_module_elsewhere_names_the_box():
    first, x = torch.nn.Sequential(torch.nn.ReLU()), torch.rand(1, 3)
    chain = to_mlp(first, x, box=(-1, -0.5))
    note = "a is for 3 inputs from -1 to -0.5, each within 0.5, and"
    assert check(chain, first, x).note.startswith(note)
    assert check(chain, first, x).summary()["note"].startswith(note)
    assert not check(chain, first, x, box=chain.box).note
    assert not check(chain[1:], first, x).note


@pytest.mark.parametrize("text", ["", "no", "[]", '{"low": 1}', '{"low": "a", "high": []}', "[" * 100000])
def test_a_box_in_other_words_is_shown_as_it_is(text):
    assert box_in_words(text) == text[:100]


def test_a_module_for_a_box():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
    result = export(module, torch.rand(1, 2), form="mlp", box=(0, 1))
    assert result.plan.box
    assert result.bounds


def test_a_box_is_for_a_chain():
    with pytest.raises(ValueError, match=r"box and spec must come with form 'mlp', got form 'graph'"):
        convert(small(), box=(0, 1))


def write_spec(tmp_path, low, high, rule="(>= Y_0 1)"):
    """About four inputs and two outputs."""
    path = tmp_path / "p.vnnlib"
    names = [f"X_{number}" for number in range(4)]
    ends = [f"(assert (>= {name} {end}))" for name, end in zip(names, low, strict=True) if end is not None]
    ends += [f"(assert (<= {name} {end}))" for name, end in zip(names, high, strict=True) if end is not None]
    path.write_text(
        "".join([*(f"(declare-const {name} Real)" for name in (*names, "Y_0", "Y_1")), *ends, f"(assert {rule})"])
    )
    return path


TWO = model("c = Sub(a, b)\ny = Relu(c)", {"b": ("N", 2), "a": ("N", 2)})


def test_a_specification_is_valid_for_the_result_too(tmp_path):
    """X_i and Y_j count the elements of all inputs and outputs in order, which a conversion keeps."""
    low, high = [0, 0, 2, -3], [1, 1, 3, -2]
    path = write_spec(tmp_path, low, high, "(or (>= Y_0 2.5) (>= Y_1 X_0))")
    spec, result = read_spec(path), convert(TWO, form="mlp", flat=True, spec=path)
    by_name = convert(TWO, form="mlp", box=({"b": [0, 0], "a": [2, -3]}, {"b": [1, 1], "a": [3, -2]}))
    np.testing.assert_equal([*result.bounds.values()], [*by_name.bounds.values()])
    x = np.random.default_rng(0).uniform(low, high, (100, 4)).astype(np.float32)
    [original] = onnxruntime.InferenceSession(TWO.SerializeToString()).run(None, {"b": x[:, :2], "a": x[:, 2:]})
    [converted] = onnxruntime.InferenceSession(result.model.SerializeToString()).run(None, {"inputs": x})
    verdicts = [spec.is_unsafe(*pair) for pair in zip(x, original, strict=True)]
    assert verdicts == [spec.is_unsafe(*pair) for pair in zip(x, converted, strict=True)]
    assert set(verdicts) == {True, False}


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ([0, 0, None, 0], [1, 1, 1, 1], "spec must bound every input on both sides, and X_2 has no lower bound"),
        ([0, 0, 0, 0], [1, None, 1, None], "spec must bound every input on both sides, and X_1 has no upper bound"),
    ],
    ids=["below", "above"],
)
def test_a_specification_bounds_all_inputs(tmp_path, low, high, message):
    with pytest.raises(ValueError, match=message):
        convert(TWO, form="mlp", spec=write_spec(tmp_path, low, high))


def test_a_specification_fits_the_network(tmp_path):
    path = write_spec(tmp_path, [0] * 4, [1] * 4)
    with pytest.raises(
        ValueError, match="spec must be about the 36 inputs and 3 outputs of the network, and is about 4 and 2"
    ):
        convert(small(), form="mlp", spec=path)
    with pytest.raises(ValueError, match="box and spec must not come together"):
        convert(TWO, form="mlp", spec=path, box=(0, 1))
    with pytest.raises(TypeError, match=r"a specification must be the path of a file, .* got int"):
        convert(TWO, form="mlp", spec=5)


def test_command_line(tmp_path):
    def run(*options):
        file, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
        file.write_bytes(small().SerializeToString())
        return CliRunner().invoke(app, ["convert", str(file), str(out), "--form", "mlp", *map(str, options)])

    path = tmp_path / "bounds.npz"
    result = run("--box", -1, 0.5, "--bounds", path)
    assert result.exit_code == 0
    assert "for 36 inputs from -1 to 0.5, each within 1.5" in result.stderr
    written, expected = np.load(path), convert(small(), form="mlp", box=(-1, 0.5)).bounds
    assert set(written) == {f"{name}.{end}" for name in expected for end in ("low", "high")}
    assert all((written[f"{name}.low"] == low).all() for name, (low, _) in expected.items())
    (tmp_path / "out.onnx").unlink()
    assert "overwrite" in run("--box", -1, 0.5, "--bounds", path).stderr
    assert "error: --bounds must come with --box LOW HIGH" in run("--bounds", path).stderr
    for name, says in (
        ("in.onnx", "in.onnx must not be"),
        ("out.onnx", "must not be OUT"),
        ("out.onnx.data", "or its"),
    ):
        result = run("--box", -1, 0.5, "--bounds", tmp_path / name, "--force")
        assert (result.exit_code, says in result.stderr) == (1, True), result.stderr
        assert not (tmp_path / "out.onnx").exists()
    onnx.load(tmp_path / "in.onnx")
