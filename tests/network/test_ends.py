"""Several inputs are one vector of a chain, or of a linear layer, and so are several outputs: both sides."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from conv2affine import to_linear, to_mlp
from conv2affine.onnx import convert, export
from conv2affine.onnx.running.runner import runner
from tests.network.models import Function, build, samples
from tests.onnx.models import difference, inputs, model, operators, random


def vector(tensors):
    return torch.cat([x.reshape(len(x), -1) for x in tensors], 1)


class Mixed(nn.Module):
    """An image, a vector and a number; outputs that are nested, an input, none of it, or no tensor."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 3, 3), nn.Linear(5, 3)

    def forward(self, image, x, number):
        hidden = torch.relu(self.conv(image))
        both = hidden.mean((2, 3)) + torch.relu(self.linear(x)) - number[:, None]
        return {"both": both, "pair": (hidden, x), "constant": torch.ones(len(x), 2, dtype=x.dtype), "count": 3}


SHAPES = (2, 4, 4), (5,), ()


def test_chain():
    mixed, x = build(Mixed), [(seed + 1) * samples(4, *shape) for seed, shape in enumerate(SHAPES)]
    mlp = to_mlp(mixed, tuple(x))
    assert [type(layer) for layer in mlp] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    expected = mixed(*x)
    outputs = [expected["both"], *expected["pair"], expected["constant"]]
    got = copy.deepcopy(mlp)(vector(x))
    torch.testing.assert_close(got, vector(outputs), rtol=0, atol=1e-13)
    assert [part.stop - part.start for part in mlp.input_slices] == [32, 5, 1]
    for part, output in zip(mlp.output_slices, outputs, strict=True):
        torch.testing.assert_close(got[:, part], output.flatten(1), rtol=0, atol=1e-13)


LINEAR = {
    "two-inputs": (lambda a, b: a.flatten(1)[:, :5] + 3 * b, 2),
    "two-outputs": (lambda a: (a.flip(1), 2 * a.sum((1, 2))), 1),
    "an-input-twice": (lambda a, b: (b, a, b), 2),
    "an-input-unused": (lambda a, b: b + 1, 2),
}


@pytest.mark.parametrize(("function", "count"), LINEAR.values(), ids=LINEAR)
def test_linear_layer(function, count):
    x = [(seed + 1) * samples(3, *shape) for seed, shape in enumerate(SHAPES[:count])]
    fc = to_linear(Function(function), tuple(x))
    outputs = function(*x)
    torch.testing.assert_close(fc(vector(x)), vector(outputs if isinstance(outputs, tuple) else [outputs]))
    assert [part.stop for part in fc.input_slices] == [32, 37][:count]


@pytest.mark.parametrize("convert", [to_mlp, to_linear])
def test_one_input_and_output_are_one_slice(convert):
    result = convert(nn.Linear(5, 3), torch.rand(2, 5))
    assert (result.input_slices, result.output_slices) == ((slice(0, 5),), (slice(0, 3),))


def test_an_output_that_mixes_samples_is_refused():
    with pytest.raises(ValueError, match=r"output 0 must have one row per sample"):
        to_mlp(Function(lambda x: (x.T, x)), torch.rand(2, 3))


NODES = "a = MatMul(x, w)\nb = Relu(a)\nc = Flatten(u)\ny = Add(b, c)\nz = Neg(u)\nk = Identity(x)"
OUTPUTS = ["y", "z", "k"]


def several(batch):
    return model(NODES, {"x": (batch, 3), "u": (batch, 2, 2)}, {"w": random(3, 4)}, outputs=OUTPUTS)


@pytest.mark.parametrize("opset", [8, 13, 18])
@pytest.mark.parametrize("batch", ["N", 1])
def test_file(batch, opset):
    original = several(batch)
    result = convert(original, form="mlp", opset=opset)
    assert operators(result.model) == ["Reshape", "Concat", "Gemm", "Relu", "Gemm", "Split", "Reshape"]
    assert difference(original, result.model, inputs(result.model, 3)) < 1e-6
    assert result.is_batched == (batch == "N")


@pytest.mark.parametrize("batch", ["N", 1])
def test_file_of_vectors(batch):
    original = several(batch)
    result = convert(original, form="mlp", flat=True)
    assert operators(result.model) == ["Gemm", "Relu", "Gemm"]
    x = inputs(original, 3)
    size = len(x["x"])
    [got] = runner(result.model)({"inputs": np.concatenate([x["x"], x["u"].reshape(size, -1)], axis=1)})
    assert list(result.input_slices.values()) == [slice(0, 3), slice(3, 7)]
    for name, expected in zip(OUTPUTS, runner(original)(x), strict=True):
        np.testing.assert_allclose(got[:, result.output_slices[name]], expected.reshape(size, -1), rtol=1e-5, atol=1e-6)


def test_exported_module():
    x = tuple(samples(3, *shape).float() for shape in SHAPES[:2])
    both = Function(lambda a, b: (torch.relu(a).sum((1, 2)), b.abs()))
    result = export(both, x, form="mlp", flat=True)
    [got] = runner(result.model)({"inputs": vector(x).numpy()})
    np.testing.assert_allclose(got, vector(both(*x)).numpy(), rtol=1e-5)
