"""The examples run; what they print is for the eye."""

import time

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("sklearn", reason="the examples need what the extra `demo` brings")
from examples import spectral_norm


def test_spectral_norm(capsys):
    spectral_norm.main(["--epochs", "1"])
    table = capsys.readouterr().out
    assert all(name in table for name in ("no constraint", "torch's spectral_norm", "matrix_norm", "power iteration"))


@pytest.mark.parametrize("size", [1, 8])
def test_power_iteration_finds_the_norm(size):
    conv = spectral_norm.nn.Conv2d(1, 8, 3, padding=1)
    estimate = spectral_norm.PowerIteration()
    for _ in range(200):
        found = estimate(conv, size)
    expected = spectral_norm.exact_norm(conv, size)
    spectral_norm.torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_verify_digits(tmp_path, capsys):
    pytest.importorskip("omlt", reason="the example needs what the extra `verify` brings")
    from examples import verify_digits

    options = {"images": 2, "output": tmp_path}
    answers = verify_digits.main([text for name, value in options.items() for text in (f"--{name}", str(value))])
    assert {answer.found is None for answer in answers} == {True, False}
    printed = capsys.readouterr().out
    assert "OMLT refuses it: ValueError" in printed
    assert "proved: it stays that" in printed
    assert (tmp_path / "counterexamples.png").stat().st_size > 1000


MAXIMUM = """
    <ir_version: 8, opset_import: ["" : 13]>
    maximum (float[1, 2] x) => (float[1, 1] y)
    <float[2, 2] v = {1, 1, 1, -1}, float[2, 1] w = {0.5, 0.5}> {
        a = MatMul(x, v)  b = Abs(a)  y = MatMul(b, w)
    }
"""  # max(|x_0|, |x_1|)
BOX = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0"))
BOX += "".join(f"(assert (and (>= X_{i} -1) (<= X_{i} 0.5)))" for i in range(2))
ANSWERS = {
    "beyond the maximum": ("(assert (>= Y_0 1.01))", "unsat"),
    "the maximum": ("(assert (>= Y_0 0.99))", "sat"),
    "both of two rules": ("(assert (<= Y_0 0.3)) (assert (>= Y_0 0.2))", "sat"),
    "a rule of the input too": ("(assert (>= Y_0 0.9)) (assert (>= (+ X_0 X_1) 0.2))", "unsat"),
    "no rule": ("", "sat"),
    "one of two cases": ("(assert (or (>= Y_0 3) (<= Y_0 0.01)))", "sat"),
}


@pytest.mark.parametrize("options", [[], ["--whole"]], ids=["box", "whole"])
@pytest.mark.parametrize(("rule", "verdict"), ANSWERS.values(), ids=ANSWERS)
def test_verify_vnnlib(tmp_path, rule, verdict, options):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from conv2affine.onnx import read_spec
    from examples import verify_vnnlib

    network, spec = tmp_path / "maximum.onnx", tmp_path / "rule.vnnlib"
    onnx.save_model(onnx.parser.parse_model(MAXIMUM), network)
    spec.write_text(BOX + rule)
    answer = verify_vnnlib.main([str(network), str(spec), *options])
    assert answer.verdict == verdict
    if verdict == "sat":
        assert read_spec(spec).is_unsafe(answer.witness, abs(answer.witness).max())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rule.vnnlib", None, "No such file"),
        ("rule.vnnlib", "(assert", "rule.vnnlib cannot be read: 1 opening parentheses have no closing one"),
        ("maximum.onnx", None, "maximum.onnx failed. File doesn't exist"),
        ("maximum.onnx", "hello", "maximum.onnx failed:Protobuf parsing failed"),
    ],
    ids=["no specification", "a broken specification", "no network", "a broken network"],
)
def test_verify_vnnlib_says_what_it_cannot_read(tmp_path, name, text, message):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from examples import verify_vnnlib

    network, spec = tmp_path / "maximum.onnx", tmp_path / "rule.vnnlib"
    onnx.save_model(onnx.parser.parse_model(MAXIMUM), network)
    spec.write_text(BOX)
    (tmp_path / name).unlink()
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as error:
        verify_vnnlib.main([str(network), str(spec)])
    assert "\n" not in str(error.value)


def test_open_relus_are_all_that_a_box_leaves_open(tmp_path):
    """Of a random network: what is left is the network, tighter bounds hold, and the answer turns at the maximum."""
    onnx = pytest.importorskip("conv2affine.onnx")
    pytest.importorskip("onnxruntime")
    from examples import relaxation, verify_vnnlib

    torch.manual_seed(0)
    sizes = [nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 1)]
    model, network, spec = nn.Sequential(*sizes), tmp_path / "random.onnx", tmp_path / "rule.vnnlib"
    onnx.export(model, torch.rand(1, 2), network)
    x = torch.cartesian_prod(*[torch.linspace(-1, 0.5, 300)] * 2)
    y = model(x).detach()[:, 0]
    largest, spread = y.max().item(), (y.max() - y.min()).item()
    for margin, verdict in ((0.01, "unsat"), (-0.01, "sat")):
        spec.write_text(BOX + f"(assert (>= Y_0 {largest + margin * spread}))")
        answer = verify_vnnlib.decide(network, spec)
        assert answer.verdict == verdict
        [case] = onnx.read_spec(spec).cases
        given = relaxation.relaxation(*verify_vnnlib.chain(network, onnx.read_spec(spec)))
        assert relaxation.branch(given, case, time.monotonic() + 60) == (verdict == "unsat")
    assert 0 < answer.binaries < 24

    tight = relaxation.tighter(given, case)
    u = x.double().numpy()
    for layer in given.layers:
        z = u @ given.matrix[layer, : u.shape[1]].T + given.constant[layer]
        for bounds in (given, tight):
            assert (bounds.low[layer] <= z).all()
            assert (z <= bounds.high[layer]).all()
        u = np.concatenate([u, np.maximum(z, 0)], 1)
    np.testing.assert_allclose(u @ given.outputs.T + given.offset, y[:, None], atol=1e-5)
    assert (tight.high - tight.low < given.high - given.low - 1e-3).any()
