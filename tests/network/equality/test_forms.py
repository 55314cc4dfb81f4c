"""Functions in other words: equal where they are, and different by one number."""

import math

import numpy as np
import onnx as standard
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conv2affine import check, onnx
from conv2affine.network.equality.checking import _side
from conv2affine.network.graph import Kept
from conv2affine.network.passes.elementary import Function
from tests.network import models as network_models
from tests.onnx.models import model, random


class Wrapped(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.function = nn.Linear(6, 12), nn.Linear(12, 3), function
        self.register_buffer("weight", torch.randn(12))
        self.register_buffer("bias", torch.randn(12))
        self.eval()

    def forward(self, x):
        return self.last(self.function(self, self.first(x)))


def normed(x, eps=1e-5):
    d = x - x.mean(-1, keepdim=True)
    return d / (d.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def attend(scores, x):
    return torch.softmax(scores, -1) @ x


def heads(x):
    return x.view(-1, 4, 3)


def softmax(x):
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


def cubic(x, factor=0.044715):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + factor * x**3)))


# Of each: a function; others that are equal to it; and others that are not.
FORMS = {
    "clip": (
        lambda m, x: x.clamp(-0.5, 0.3),
        [
            lambda m, x: torch.minimum(torch.maximum(x, x.new_tensor(-0.5)), x.new_tensor(0.3)),
            lambda m, x: torch.maximum(torch.minimum(x, x.new_tensor(0.3)), x.new_tensor(-0.5)),
            lambda m, x: -0.5 + F.relu(x + 0.5) - F.relu(x - 0.3),
            lambda m, x: 0.3 - F.relu(0.8 - F.relu(x + 0.5)),
            lambda m, x: 0.8 * (1.25 * x + 0.625).clamp(0, 1) - 0.5,
            lambda m, x: x + F.relu(-0.5 - x) - F.relu(x + F.relu(-0.5 - x) - 0.3),
        ],
        [
            lambda m, x: x.clamp(-0.5, 0.301),
            lambda m, x: torch.maximum(x, x.new_tensor(-0.5)).clamp(max=0.299),
            lambda m, x: x + F.relu(-0.5 - x) - F.relu(x + F.relu(-0.51 - x) + 0.3),
            lambda m, x: 0.3 - F.relu(0.8 + F.relu(x + 0.5)),
        ],
    ),
    "scaled relu": (
        lambda m, x: F.relu(x - 0.1),
        [lambda m, x: F.relu(3 * x - 0.3) / 3, lambda m, x: F.relu(0.1 - x) + x - 0.1],
        [lambda m, x: F.relu(3 * x - 0.3) / 3.001, lambda m, x: F.relu(3 * x - 0.31) / 3],
    ),
    "no clip": (
        lambda m, x: F.relu(x + F.relu(-0.5 - x) + 0.7),
        [lambda m, x: F.relu(torch.maximum(x, x.new_tensor(-0.5)) + 0.7)],
        [lambda m, x: F.relu(x + 0.7)],
    ),
    "nested relu": (
        lambda m, x: F.relu(F.relu(x) - 0.3),
        [lambda m, x: F.relu(x - 0.3), lambda m, x: F.relu(2 * F.relu(x / 4) - 0.15) * 2],
        [lambda m, x: F.relu(x - 0.31)],
    ),
    "relu of a relu": (
        lambda m, x: F.relu(-x) + x,
        [lambda m, x: F.relu(F.relu(x)), lambda m, x: F.relu(x)],
        [lambda m, x: F.relu(F.relu(x)) + 0.001 * x],
    ),
    "nested relu with an offset": (
        lambda m, x: F.relu(F.relu(x) + 0.3),
        [lambda m, x: F.relu(x) + 0.3],
        [lambda m, x: F.relu(x + 0.3)],
    ),
    "square": (
        lambda m, x: x * x,
        [lambda m, x: (2 * x) ** 2 / 4],
        [lambda m, x: (2 * x) ** 2 / 2, lambda m, x: x * (x + 0.001)],
    ),
    "hardsigmoid": (
        lambda m, x: F.hardsigmoid(4 * x),
        [lambda m, x: F.relu6(4 * x + 3) / 6, lambda m, x: (4 * x / 6 + 0.5).clamp(0, 1)],
        [lambda m, x: (4 * x / 6 + 0.5).clamp(0, 0.99), lambda m, x: (0.8 * x + 0.5).clamp(0, 1)],
    ),
    "hardswish": (
        lambda m, x: F.hardswish(x),
        [lambda m, x: x * F.relu6(x + 3) / 6, lambda m, x: F.hardsigmoid(x) * x],
        [lambda m, x: x * F.relu6(x + 3) / 6.01, lambda m, x: x * F.relu6(x + 2.99) / 6],
    ),
    "gelu": (
        lambda m, x: F.gelu(x),
        [
            lambda m, x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
            lambda m, x: x * (0.5 * torch.erf(x * 0.5**0.5) + 0.5),
        ],
        [lambda m, x: F.gelu(x, approximate="tanh"), lambda m, x: 0.5 * x * (1.001 + torch.erf(x / math.sqrt(2)))],
    ),
    "gelu-tanh": (
        lambda m, x: F.gelu(x, approximate="tanh"),
        [lambda m, x: cubic(x), lambda m, x: cubic(x).clone()],
        [lambda m, x: cubic(x, 0.0447), lambda m, x: F.gelu(x)],
    ),
    "silu": (
        lambda m, x: F.silu(x),
        [lambda m, x: x * torch.sigmoid(x), lambda m, x: torch.sigmoid(x) * x],
        [lambda m, x: x * torch.sigmoid(1.001 * x), lambda m, x: x * torch.tanh(x)],
    ),
    "mish": (
        lambda m, x: F.mish(x),
        [lambda m, x: x * torch.tanh(F.softplus(x))],
        [lambda m, x: x * torch.tanh(F.softplus(x, beta=1.01))],
    ),
    "elu": (
        lambda m, x: F.elu(x, 0.7),
        [
            lambda m, x: F.relu(x) + 0.7 * (torch.exp(-F.relu(-x)) - 1),
            lambda m, x: F.relu(x) - 0.7 + 0.7 * torch.exp(x.clamp(max=0)),
        ],
        [lambda m, x: F.elu(x, 0.701), lambda m, x: F.celu(x, 0.7)],
    ),
    "softmax": (
        lambda m, x: x.softmax(-1),
        [lambda m, x: softmax(x), lambda m, x: softmax(x).clone()],
        [lambda m, x: x.view(-1, 2, 6).softmax(-1).flatten(1), lambda m, x: (1.001 * x).softmax(-1)],
    ),
    "log_softmax": (
        lambda m, x: x.log_softmax(-1),
        [
            lambda m, x: (
                x - x.amax(-1, keepdim=True) - torch.log(torch.exp(x - x.amax(-1, keepdim=True)).sum(-1, keepdim=True))
            )
        ],
        [lambda m, x: x.softmax(-1)],
    ),
    "layer norm": (
        lambda m, x: F.layer_norm(x, (12,), m.weight, m.bias),
        [
            lambda m, x: normed(x) * m.weight + m.bias,
            lambda m, x: F.group_norm(x.view(-1, 1, 12), 1).view(-1, 12) * m.weight + m.bias,
        ],
        [
            lambda m, x: F.layer_norm(x, (12,), m.weight, m.bias, eps=1e-4),
            lambda m, x: normed(x) * m.bias + m.weight,
            lambda m, x: F.layer_norm(x.view(-1, 2, 6), (6,)).flatten(1) * m.weight + m.bias,
        ],
    ),
    "group norm": (
        lambda m, x: F.group_norm(x.view(-1, 6, 2), 3, m.weight[:6], m.bias[:6]).flatten(1),
        [lambda m, x: (normed(x.view(-1, 3, 4)).view(-1, 6, 2) * m.weight[:6, None] + m.bias[:6, None]).flatten(1)],
        [lambda m, x: F.group_norm(x.view(-1, 6, 2), 2, m.weight[:6], m.bias[:6]).flatten(1)],
    ),
    "instance norm": (
        lambda m, x: F.instance_norm(x.view(-1, 3, 4)).flatten(1),
        [lambda m, x: normed(x.view(-1, 3, 4)).flatten(1)],
        [lambda m, x: F.instance_norm(x.view(-1, 2, 6)).flatten(1)],
    ),
    "rms norm": (
        lambda m, x: F.rms_norm(x, (12,), m.weight, 1e-5),
        [lambda m, x: x / (x * x).mean(-1, keepdim=True).add(1e-5).sqrt() * m.weight],
        [
            lambda m, x: x / (x * x).mean(-1, keepdim=True).add(2e-5).sqrt() * m.weight,
            lambda m, x: F.layer_norm(x, (12,), m.weight),
        ],
    ),
    "attention": (
        lambda m, x: F.scaled_dot_product_attention(heads(x), heads(x.flip(1)), heads(2 * x)).flatten(1),
        [
            lambda m, x: (2 * attend(heads(x) @ heads(x.flip(1)).mT / 3**0.5, heads(x))).flatten(1),
            lambda m, x: attend((heads(x) / 3**0.25) @ (heads(x.flip(1)) / 3**0.25).mT, heads(x) * 2).flatten(1),
        ],
        [
            lambda m, x: (2 * attend(heads(x) @ heads(x.flip(1)).mT / 3, heads(x))).flatten(1),
            lambda m, x: (2 * attend(heads(x.flip(1)) @ heads(x).mT / 3**0.5, heads(x))).flatten(1),
        ],
    ),
}
SHORT = ("clip", "relu of a relu", "no clip", "square", "layer norm")


# Their other words have powers, or a group norm, which `onnx.export` does not write.
NOT_WRITTEN = ("square", "gelu-tanh", "layer norm", "group norm", "instance norm")


def cases(place, names=tuple(FORMS)):
    return [
        pytest.param(
            row[0], function, id=f"{name}-{number}", marks=() if name in SHORT and not number else pytest.mark.long
        )
        for name, row in FORMS.items()
        if name in names
        for number, function in enumerate(row[place])
    ]


X = torch.linspace(-2, 2, 6).view(1, 6)


@pytest.mark.parametrize(("first", "second"), cases(1))
def test_equal_in_other_words(first, second):
    result = check(Wrapped(first), Wrapped(second), X, box=(-3, 3))
    assert (result.verdict, result.origin) == ("equal", ((), ())), result


@pytest.mark.parametrize(("first", "second"), cases(2))
def test_one_number_makes_a_difference(first, second):
    pair = [Wrapped(function) for function in (first, second)]
    result = check(*pair, X, box=(-3, 3))
    assert result.verdict == "different"
    # A rule that is wrong would make the bound too small, which is then none.
    assert np.isfinite(result.bound) == _side(pair[0], X)[0].has_bounds


@pytest.mark.parametrize(("first", "second"), cases(1, {*FORMS} - {*NOT_WRITTEN}))
def test_a_file_in_other_words(first, second):
    assert check(Wrapped(first), onnx.export(Wrapped(second), X).model, X).verdict == "equal"


@pytest.mark.parametrize(("_first", "second"), cases(1, NOT_WRITTEN))
def test_what_no_file_is_written_of(_first, second):
    with pytest.raises(NotImplementedError, match="has no ONNX operator here"):
        onnx.export(Wrapped(second), X)


SIGMOID = model(
    "h = Gemm(x, w)\ns = Sigmoid(h)\nt = Softmax(s)\nu = Softplus(t)\ny = Erf(u)",
    {"x": ("N", 4)},
    {"w": random(4, 3)},
    opset=11,
)


def test_another_opset_of_the_same_meaning():
    for opset in (13, 17, 21):
        other = standard.version_converter.convert_version(SIGMOID, opset)
        assert onnx.check(SIGMOID, other).verdict == "equal"
    nodes = "h = Gemm(x, w)\nt = LeakyRelu(h)\ny = LayerNormalization<axis = -1, epsilon = {}>(t, scale, bias)"
    constants = {"w": random(4, 3), "scale": random(3, seed=1), "bias": random(3, seed=2)}
    files = [model(nodes.format(eps), {"x": ("N", 4)}, constants, opset=17) for eps in ("0.00001", "0.0001")]
    assert onnx.check(files[0], files[0]).verdict == "equal"
    assert onnx.check(*files).verdict == "different"


def pairs(x):
    return x.view(-1, 2, 3)


MASK = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])
AS_THEY_ARE = {
    "infinite mask": (
        lambda x: F.scaled_dot_product_attention(pairs(x), pairs(x), pairs(x), MASK).flatten(1),
        lambda x: F.scaled_dot_product_attention(pairs(1 * x), pairs(x), pairs(x) + 0, MASK).flatten(1),
        "equal",
    ),
    "mean of a layer norm": (
        lambda x: torch.native_layer_norm(x, (6,), torch.ones(6), None, 1e-5)[1],
        lambda x: x.mean(-1, keepdim=True),
        "undecided",
    ),
    "logarithms that are NaN": (lambda x: F.relu(x.log()), lambda x: F.relu(2 * x.log()) / 2, "equal"),
    "ReLU of an input": (lambda x: x.sinh(), lambda x: F.relu(x), "different"),
    # Zeros in the box, so that only their forms tell them from each other.
    "products of other shapes": (
        lambda x: (x[:, :3, None].round() * x[:, None, 3:].round()).flatten(1),
        lambda x: (x[:, 3:, None].round() * x[:, None, :3].round()).flatten(1),
        "undecided",
    ),
}


@pytest.mark.parametrize(("first", "second", "verdict"), AS_THEY_ARE.values(), ids=AS_THEY_ARE)
def test_operators_that_no_rule_writes(first, second, verdict):
    pair = [network_models.Function(function) for function in (first, second)]
    assert check(*pair, X, box=(-0.4, 0.4)).verdict == verdict


IMAGE = torch.linspace(-3, 3, 24, dtype=torch.float64).view(1, 4, 3, 2)
EXACT = {
    "softplus": lambda x: F.softplus(x, 2.0),
    "celu": lambda x: F.celu(x, 0.6),
    "celu below zero": lambda x: F.celu(x, -0.6),
    "elu below zero": lambda x: F.elu(x, -0.3),
    "selu": F.selu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "group norm": lambda x: F.group_norm(x, 2, IMAGE[0, :, 0, 0], IMAGE[0, :, 1, 1], 1e-2),
    "instance norm": lambda x: F.instance_norm(x, None, None, IMAGE[0, :, 0, 0], None, eps=1e-2),
    "layer norm of two axes": lambda x: F.layer_norm(x, (3, 2), IMAGE[0, 0], None, 1e-2),
    "logarithms of softmax": lambda x: torch.log_softmax(x, -2),
    "attention": lambda x: F.scaled_dot_product_attention(x, x.flip(1), 2 * x, IMAGE @ IMAGE.mT, scale=0.3),
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x.flip(1), 2 * x, is_causal=True),
    "grouped attention": lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, 2:], enable_gqa=True),
    "powers": lambda x: torch.cat([x.abs() ** power for power in (0.5, -0.5, -1, 0, 1, 2, 3, 4)], 1),
    "quotients": lambda x: torch.cat([x / (1 + x.flip(1).abs()), torch.ones(1, 4, 1, 2) / (9 + x)], 1),
    "whole quotients": lambda x: torch.div(x, 1 + x.flip(1).abs(), rounding_mode="floor"),
    "product of all pairs": lambda x: x[:, :, None] * x[:, None],
}


@pytest.mark.parametrize("function", EXACT.values(), ids=EXACT)
def test_rules_are_exact(function):
    side, _ = _side(network_models.Function(function), IMAGE)
    points = np.random.default_rng(0).standard_normal((4, IMAGE.numel())) * 3
    np.testing.assert_allclose(side.output(side.values(points)), side.run(points), rtol=1e-12, atol=1e-13)


def test_what_is_whole_numbers_stays_as_it_is():
    """A product of bytes overflows: 16 * 16 is 0."""

    def bytes_(m, x):
        y = (8 * x).clamp(0, 31).to(torch.uint8)
        return (y * y).float()

    def floats(m, x):
        y = (8 * x).clamp(0, 31).to(torch.uint8).float()
        return y * y

    assert check(Wrapped(bytes_), Wrapped(floats), X, box=(-3, 3)).verdict == "different"
    for function, count in ((bytes_, 0), (lambda m, x: x * x, 1)):
        nodes = _side(Wrapped(function), X)[0].whole.nodes
        assert sum(isinstance(node, Kept) and isinstance(node.call, Function) for node in nodes) == count
