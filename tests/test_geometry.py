"""Geometry: sizes as PyTorch computes them, and each refusal with its reason."""

import dataclasses

import numpy as np
import pytest
import torch
from cases import CASES
from torch import nn

from conv2affine import Geometry, to_bias, to_linear, to_matrix


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_output_size_is_pytorchs(case):
    conv = case.conv()
    expected = conv(torch.zeros(conv.in_channels, *case.input_size, dtype=torch.float64)).shape[1:]
    geometry = Geometry.from_layer(conv, case.input_size)
    assert geometry.output_size == expected


def test_is_immutable_and_hashable():
    one = Geometry(1, 2, (3, 3), input_size=5, padding="same")
    assert one == Geometry(1, 2, [3, 3], input_size=np.array([5, 5]), padding=((1, 1), (1, 1)))
    assert len({one, Geometry(1, 2, (3, 3), input_size=(5, 5), padding=1)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.stride = (2, 2)


@pytest.mark.parametrize(
    "size", [5, (5, 5), [5, 5], torch.Size([5, 5]), torch.tensor([5, 5]), torch.tensor(5), np.int64(5)], ids=repr
)
def test_input_size_in_any_form(size):
    assert Geometry(1, 1, (3, 3), input_size=size).input_size == (5, 5)


GOOD = {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 3), "input_size": (5, 6)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"input_size": (5,)},
            ValueError,
            r"input_size \(\(5,\)\) must have one entry per axis.* 2",
        ),
        ({"input_size": (4, 5, 6)}, ValueError, "input_size .* must have one entry per axis"),
        ({"input_size": (5, 0)}, ValueError, r"input_size \(\(5, 0\)\) must be >= 1"),
        ({"input_size": -3}, ValueError, r"input_size \(-3\) must be >= 1"),
        ({"input_size": (5.0, 6)}, TypeError, r"input_size \(\(5.0, 6\)\) must be integers"),
        ({"input_size": "56"}, TypeError, "input_size .* must be integers"),
        ({"input_size": None}, TypeError, "input_size .* must be integers"),
        ({"input_size": (2, 6)}, ValueError, "kernel of axis 0 must not be larger than the padded"),
        ({"dilation": (1, 3)}, ValueError, r"reaches over 7 \(kernel size 3, dilation 3\).* 6"),
        ({"in_channels": 0}, ValueError, "in_channels"),
        ({"groups": 4}, ValueError, r"out_channels \(6\) must be divisible by groups \(4\)"),
        ({"groups": 3}, ValueError, r"in_channels \(4\) must be divisible by groups \(3\)"),
        ({"groups": 0}, ValueError, "groups .* must be >= 1"),
        ({"kernel_size": 3}, ValueError, "kernel_size .* one entry per axis"),
        ({"kernel_size": (1, 1, 1, 1)}, ValueError, "1, 2 or 3 axes"),
        ({"kernel_size": (0, 3)}, ValueError, "kernel_size .* must be >= 1"),
        ({"stride": 0}, ValueError, r"stride \(0\) must be >= 1"),
        ({"stride": (1, 1, 1)}, ValueError, "stride .* one entry per axis"),
        ({"dilation": 0}, ValueError, r"dilation \(0\) must be >= 1"),
        ({"padding": -1}, ValueError, r"padding \(-1\) must be >= 0"),
        ({"padding": (1, -1)}, ValueError, r"padding .* must be >= 0"),
        ({"padding": ((1, 2),)}, ValueError, "one .left, right. pair per axis"),
        ({"padding": "full"}, ValueError, "padding .'full'. must be numbers, 'same' or 'valid'"),
        ({"padding": "same", "stride": 2}, ValueError, "padding='same' needs stride 1"),
        ({"padding_mode": "mirror"}, ValueError, r"padding_mode \('mirror'\) must be one of"),
        (
            {"padding_mode": "circular", "padding": (6, 1)},
            ValueError,
            "at most 5 on each side with padding_mode 'circular' and input size 5",
        ),
        (
            {"padding_mode": "reflect", "padding": (1, 6)},
            ValueError,
            "axis 1 must be at most 5 on each side with padding_mode 'reflect' and input size 6",
        ),
        ({"output_padding": 1}, ValueError, "must be 0 unless the convolution is transposed"),
        (
            {"output_padding": 1, "transposed": True},
            ValueError,
            r"output_padding \(1\) of axis 0 must be smaller than stride \(1\) or dilation \(1\)",
        ),
        ({"padding": 4, "transposed": True}, ValueError, "must leave an output, got size -1"),
        (
            {"padding_mode": "circular", "transposed": True},
            ValueError,
            "must be 'zeros' in a transposed convolution",
        ),
        ({"padding": "same", "transposed": True}, ValueError, "no transposition"),
        ({"input_size": 2**31}, ValueError, "more than a signed 64-bit integer counts"),
        ({"input_size": 2**70}, ValueError, "fit into 64 bits"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    Geometry(**GOOD)
    with pytest.raises(error, match=message):
        Geometry(**{**GOOD, **change})


class Squared(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) ** 2


class Standardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


def patched():
    conv = nn.Conv2d(1, 1, 3)
    conv.forward = lambda x: x
    return conv


@pytest.mark.parametrize("function", [to_linear, to_matrix, to_bias])
@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (nn.Linear(3, 3), TypeError, "must be one of torch.nn's Conv1d, .*got torch.nn.*Linear"),
        (
            nn.Sequential(nn.Conv2d(1, 1, 3)),
            TypeError,
            "convert the convolutions inside it, and multiply their matrices",
        ),
        (torch.ones(1, 1, 3, 3), TypeError, "got torch.Tensor; pass a layer"),
        (Squared(1, 1, 3), TypeError, "Squared. overrides forward.*pass a plain Conv2d"),
        (Standardised(1, 1, 3), TypeError, "Standardised. overrides _conv_forward"),
        (patched(), TypeError, "overrides forward"),
        (
            nn.LazyConv2d(1, 3),
            ValueError,
            "lazy and has no weights yet; run a batch through it first",
        ),
    ],
    ids=["linear", "sequential", "tensor", "forward", "_conv_forward", "patched", "lazy"],
)
def test_other_layers_are_refused(function, layer, error, message):
    with pytest.raises(error, match=message):
        function(layer, 5)


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions:UserWarning")
def test_quantized_layer_is_refused():
    quantized = pytest.importorskip("torch.ao.nn.quantized", reason="torch.ao is not in this torch")
    with pytest.raises(TypeError, match="convert the float layer it was made from"):
        to_linear(quantized.Conv2d(1, 1, 3), 5)


def test_weight_that_is_not_the_layers_is_refused():
    conv = nn.Conv2d(4, 6, 3, groups=2)
    conv.weight = nn.Parameter(torch.zeros(6, 4, 3, 3))
    with pytest.raises(ValueError, match=r"weight must have shape \(6, 2, 3, 3\).* got \(6, 4, 3, 3\)"):
        to_matrix(conv, 5)
