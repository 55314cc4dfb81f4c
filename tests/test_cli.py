"""The command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from typer.testing import CliRunner

import conv2affine
from conv2affine.__main__ import main
from conv2affine.cli import app
from tests.onnx.models import model, operators, random


@pytest.fixture
def file(tmp_path):
    """A small network."""
    path = tmp_path / "in.onnx"
    nodes = "c = Conv(x, w)\ny = Sigmoid(c)"
    path.write_bytes(model(nodes, {"x": ("N", 1, 4, "W")}, {"w": random(2, 1, 3, 3)}).SerializeToString())
    return path


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


SHAPE = ("--shape", "x=1,1,4,4")


def test_plan(file):
    result = run("plan", file, *SHAPE)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].split() == ["from", "is", "matrix", "entries", "dense", "sparse", "layout"]
    assert "kept: Sigmoid" in result.stdout
    assert not result.stderr


def test_plan_says_that_convert_would_refuse(file):
    result = run("plan", file, *SHAPE, "--max-gib", "1e-7")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("refused: the layers need 512 B, more than max_bytes (107 B)")
    assert json.loads(run("plan", file, *SHAPE, "--max-gib", "1e-7", "--json").stdout)["refusal"]


def test_plan_as_json(file):
    table = json.loads(run("plan", file, *SHAPE, "--json").stdout)
    assert table["nnz"] == 2 * 4 * 9
    assert table["rows"][0]["name"] == "c"
    assert table["rows"][0]["bytes"]["dense"] == 8 * 16 * 4


def test_convert(file, tmp_path):
    result = run("convert", file, tmp_path / "out.onnx", *SHAPE, "--opset", 14)
    assert result.exit_code == 0
    assert not result.stdout
    assert "kept: y: no rule covers the operator" in result.stderr
    assert "opset 14, any number of samples; differs from" in result.stderr
    assert operators(onnx.load(tmp_path / "out.onnx")) == ["Reshape", "Gemm", "Sigmoid", "Reshape"]


def test_convert_as_json(file, tmp_path):
    report = json.loads(run("convert", file, tmp_path / "out.onnx", *SHAPE, "--json", "--dtype", "float64").stdout)
    assert report["kept"] == {"y": "no rule covers the operator"}
    assert report["difference"] < 1e-6
    assert report["any_batch"]
    assert report["opset"] == 13


def test_force(file, tmp_path):
    out = tmp_path / "out.onnx"
    out.write_text("mine")
    result = run("convert", file, out, *SHAPE)
    assert result.exit_code == 1
    assert "is there already; overwrite=True, or --force, replaces it" in result.stderr
    assert out.read_text() == "mine"
    assert run("convert", file, out, *SHAPE, "--force").exit_code == 0
    assert operators(onnx.load(out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: input x (N, 1, 4, W) must have fixed sizes after its first axis"),
        (("--shape", "4"), "error: --shape (4) must be a name and sizes, as in image=1,3,32,32"),
        ((*SHAPE, "--form", "mlp"), "error: y: Sigmoid must be affine or piecewise linear"),
        ((*SHAPE, "--max-gib", "1e-7"), "error: the layers need 512 B, more than max_bytes"),
    ],
    ids=["sizes", "shape", "mlp", "memory"],
)
def test_an_error_is_one_line(file, tmp_path, arguments, message):
    result = run("convert", file, tmp_path / "out.onnx", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_no_file(file, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    assert run("plan", folder).stderr == f"error: {folder}: Is a directory\n"
    result = run("convert", file, folder, *SHAPE, "--force")
    assert result.exit_code == 1
    assert result.stderr == f"error: {folder} must be a file, and is a folder\n"


def test_an_empty_file_is_named(tmp_path):
    path = tmp_path / "empty.onnx"
    path.touch()
    assert run("plan", path).stderr == f"error: {path} must be an ONNX model with outputs, and has none\n"


def test_version():
    assert run("--version").stdout == f"conv2affine {conv2affine.__version__}\n"


def test_as_a_module():
    result = subprocess.run([sys.executable, "-m", "conv2affine", "--version"], capture_output=True, text=True)
    assert result.stdout == f"conv2affine {conv2affine.__version__}\n"


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pt2"])
def test_a_pytorch_file_is_to_be_exported(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.touch()
    for arguments in ("plan", path), ("convert", path, tmp_path / "out.onnx"):
        result = run(*arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"error: {path} must be an ONNX file, and has the name of a PyTorch file;")
        assert "torch.onnx.export(model, (x,), 'model.onnx')" in result.stderr


def test_missing_file(tmp_path):
    result = run("plan", tmp_path / "no.onnx")
    assert result.exit_code == 1
    assert result.stderr == f"error: {tmp_path / 'no.onnx'}: No such file or directory\n"


def test_debug_has_the_traceback(tmp_path):
    result = run("plan", tmp_path / "no.onnx", "--debug")
    assert isinstance(result.exception, FileNotFoundError)


@pytest.mark.parametrize("command", ["plan", "convert"])
def test_a_chain_takes_no_merge(command, file, tmp_path):
    arguments = [command, file, *([tmp_path / "out.onnx"] if command == "convert" else [])]
    result = run(*arguments, "--form", "mlp", "--merge", "never")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: merge ('never') must be left out in form 'mlp': a chain is merged where")


def test_usage_errors(file):
    assert run("plan", file, "--form", "cnn").exit_code == 2
    assert run("convert", file).exit_code == 2
    assert run("convert", file, "out.onnx", "--max-gib", "-1").exit_code == 2


@pytest.mark.parametrize("command", ["plan", "convert"])
def test_help_teaches_by_example(command):
    assert f"conv2affine {command} lenet.onnx" in run(command, "--help").stdout


def test_every_option_is_in_the_api_reference():
    page = (Path(__file__).parents[1] / "docs/api/command-line.md").read_text()
    documented = {(option, of) for option, of in re.findall(r"^\| `(--[\w-]+).*?\| ([a-z, ]+) \|", page, re.MULTILINE)}
    options = {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        for name, command in typer.main.get_command(app).commands.items()
    }
    both = options["plan"] & options["convert"]
    assert options["plan"] == both
    assert documented == {(option, "plan, convert" if option in both else "convert") for option in options["convert"]}


def test_plan_of_random_bytes(tmp_path):
    path = tmp_path / "random.onnx"
    path.write_bytes(np.random.default_rng(0).bytes(1000))
    result = run("plan", path)
    assert result.exit_code == 1
    assert "must be an ONNX file" in result.stderr


def test_without_typer_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "conv2affine.cli")
    with pytest.raises(SystemExit, match=r"^error: the command line needs typer; install it with: pip install"):
        main()


def test_a_result_is_no_pytorch_file(file, tmp_path):
    result = run("convert", file, tmp_path / "out.pt", *SHAPE)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {tmp_path}/out.pt must not have the name of a PyTorch file: it is written in ONNX; "
        f"name it {tmp_path}/out.onnx\n"
    )
    assert list(tmp_path.iterdir()) == [file]
