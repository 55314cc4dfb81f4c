"""From PyTorch modules to ONNX files."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

from conv2affine.onnx import export
from conv2affine.onnx.importing.aten import ONNX_NAMES
from conv2affine.onnx.running import runner
from tests.network.models import Function
from tests.onnx.models import operators


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.second = nn.Conv2d(2, 2, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.head = nn.Linear(18, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(x) + x)
        return self.head(self.pool(x).flatten(1))


@pytest.mark.parametrize("form", ["graph", "mlp"])
def test_export(form, tmp_path):
    module, x = Residual().eval(), torch.randn(3, 1, 6, 6)
    export(module, x, tmp_path / "x.onnx", form=form)
    [y] = runner.runner(tmp_path / "x.onnx")({"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), module(x).detach())
    found = operators(onnx.load(tmp_path / "x.onnx"))
    assert set(found) <= {"Reshape", "Gemm", "Relu"} | ({"Gather", "ReduceMax"} if form == "graph" else set())


KEPT_MODULES = {
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "softmax": nn.Softmax(1),
    "log-softmax": nn.LogSoftmax(1),
    "hardswish": nn.Hardswish(),
    "mish": nn.Mish(),
    "softplus": nn.Softplus(),
}


@pytest.mark.parametrize("step", KEPT_MODULES.values(), ids=KEPT_MODULES)
def test_export_keeps_steps(step):
    result = export(nn.Sequential(nn.Conv1d(1, 2, 3), step), torch.randn(2, 1, 5))
    assert result.kept == {"1": "it is not affine"}


class Applied(nn.Module):
    """A function of one or two values, after a layer."""

    def __init__(self, function):
        super().__init__()
        self.function, self.layer = function, nn.Linear(3, 3)

    def forward(self, x):
        y = self.layer(x).sigmoid()
        return self.function(y) if self.function not in BINARY else self.function(y, y + 1)


BINARY = (torch.add, torch.sub, torch.mul, torch.div)


@pytest.mark.parametrize("name", [name for name in ONNX_NAMES if name not in ("matmul", "bmm")])
def test_export_of_each_pointwise_step(name):
    function = getattr(torch, name, None) or getattr(nn.functional, name)
    assert export(Applied(function), torch.randn(2, 3)).is_batched


def test_export_refuses():
    with pytest.raises(NotImplementedError, match=r"0 \(softplus\) has no ONNX operator here"):
        export(nn.Sequential(nn.Softplus(beta=2)), torch.randn(1, 3))
    with pytest.raises(NotImplementedError, match=r"0 \(gelu\) has no ONNX operator here; use torch.onnx.export"):
        export(nn.Sequential(nn.GELU()), torch.randn(1, 3))
    with pytest.raises(TypeError, match="must be tensors of float32 or float64"):
        export(nn.Sequential(nn.ReLU()).half(), torch.randn(1, 3).half())


@pytest.mark.parametrize("function", [torch.relu, torch.tanh], ids=["layer", "selection"])
def test_numbers_that_overflow_in_the_dtype_are_refused(function):
    model = Function(lambda x: function(-1e39 * x.abs() + 0.5))
    with pytest.raises(ValueError, match=r"^mul: weight of its layer must be finite in torch.float32, and some"):
        export(model, torch.rand(1, 3, dtype=torch.float64), dtype=torch.float32)
