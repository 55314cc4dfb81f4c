"""Geometry: sizes as PyTorch computes them, and each refusal with its reason."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from conv2affine import (
    Geometry,
    Plan,
    as_linear_operator,
    conv_matrix,
    conv_transpose_matrix,
    plan,
    reference,
    to_bias,
    to_linear,
    to_matrix,
    to_scipy,
    torch_conv_layer_to_affine,
)
from tests.cases import CASES


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


class Unprintable(torch.Tensor):
    """A tensor of which only the shape may be read."""

    def __repr__(self, **_):
        raise AssertionError("an error message prints the elements")

    __str__ = __format__ = __repr__


EXAMPLES = [
    torch.zeros(2, 4, 5, 6),
    torch.zeros(0, 4, 5, 6, dtype=torch.int64),
    torch.zeros(2, 4, 5, 6, device="meta"),
    torch.zeros(2, 4, 5, 6).as_subclass(Unprintable),
]
BY_LAYER = [to_matrix, to_bias, to_linear, torch_conv_layer_to_affine, plan, to_scipy, as_linear_operator]
BY_LAYER += [Geometry.from_layer]


@pytest.mark.parametrize("example", EXAMPLES, ids=["float", "empty-batch", "meta", "subclass"])
@pytest.mark.parametrize("function", BY_LAYER, ids=lambda function: function.__name__)
def test_input_size_may_be_an_example_input(function, example):
    conv = nn.Conv2d(4, 6, 3)
    result, expected = function(conv, example), function(conv, (5, 6))
    if isinstance(expected, Geometry | Plan):
        assert result == expected
    elif isinstance(expected, nn.Linear):
        assert torch.equal(result.weight, expected.weight)
    else:
        assert result.shape == expected.shape


def test_functional_forms_take_an_example_input():
    x = torch.zeros(1, 2, 5, 6)
    weight = torch.randn(3, 2, 2, 2)
    assert torch.equal(conv_matrix(weight, x), conv_matrix(weight, (5, 6)))
    transposed = weight.transpose(0, 1)
    assert torch.equal(conv_transpose_matrix(transposed, x), conv_transpose_matrix(transposed, (5, 6)))
    assert Geometry(2, 3, (2, 2), input_size=x).input_size == (5, 6)


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (torch.zeros(4, 5, 6), ValueError, r"shape \(batch, 4, I_1, I_2\), got shape \(4, 5, 6\); add the batch"),
        (torch.zeros(2, 3, 5, 6), ValueError, r"shape \(batch, 4, I_1, I_2\), got shape \(2, 3, 5, 6\)"),
        (torch.zeros(5, 6), ValueError, r"got shape \(5, 6\)"),
        (torch.zeros(1, 2, 4, 5, 6), ValueError, r"got shape \(1, 2, 4, 5, 6\)"),
        (torch.ones(2), TypeError, r"input_size \(Unprintable of shape \(2,\)\) must be integers"),
        (
            torch.ones(9999, dtype=torch.int64),
            ValueError,
            r"input_size \(Unprintable of shape \(9999,\)\) must have one",
        ),
        (-torch.ones(2, dtype=torch.int64), ValueError, r"input_size \(Unprintable of shape \(2,\)\) must be >= 1"),
    ],
    ids=["no-batch", "channels", "rank-2", "rank-5", "floats", "too-many", "negative"],
)
def test_other_tensors_are_refused_without_their_elements(size, error, message):
    size = size.as_subclass(Unprintable)
    for function in (to_matrix, plan):
        with pytest.raises(error, match=message):
            function(nn.Conv2d(4, 6, 3), size)
    with pytest.raises((TypeError, ValueError), match=r"Unprintable of shape|one entry per axis"):
        Geometry(4, 6, (3, 3), input_size=5, stride=size)


def test_an_array_is_no_example_input():
    with pytest.raises(ValueError, match=r"an example input must be a tensor: pass torch.from_numpy\(x\)"):
        to_matrix(nn.Conv2d(4, 6, 3), np.zeros((1, 4, 5, 6)))


@pytest.mark.parametrize("size", [(4, 5, 6), (2, 4, 5, 6), torch.Size([2, 4, 5, 6]), [4, 5, 6]], ids=repr)
def test_shape_with_batch_or_channels_says_to_leave_them_out(size):
    with pytest.raises(ValueError, match="that is 2, or be an int; leave out batch and channels"):
        to_matrix(nn.Conv2d(4, 6, 3), size)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same"], ids=str)
def test_padding_that_was_changed_later(mode, padding):
    """A padded layer goes on with the padding of its constructor."""
    conv = nn.Conv2d(2, 3, (3, 4), padding=padding, padding_mode=mode, dtype=torch.float64)
    conv.padding = (7, 7)
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(to_linear(conv, x)(x.flatten(1)), conv(x).flatten(1), rtol=1e-12, atol=1e-12)
    assert torch.equal(to_linear(conv, x).weight, reference.to_linear(conv, (6, 5)).weight)
    conv.padding_mode, conv.padding = "zeros", (2, 1)  # and a plain one with that of the attribute
    torch.testing.assert_close(to_linear(conv, x)(x.flatten(1)), conv(x).flatten(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [to_matrix, to_linear, to_scipy, as_linear_operator, plan])
def test_kernel_size_that_is_not_the_weights_is_refused_at_once(function):
    conv = nn.Conv1d(1, 1, 3, padding=2**40)
    conv.kernel_size = (2**40,)
    with pytest.raises(ValueError, match=r"weight must have shape \(1, 1, 1099511627776\).* got \(1, 1, 3\)"):
        function(conv, 9)


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
        ({"padding": (1, 2, 0, 1)}, ValueError, r"one entry per axis.* for two sides, pass a \(left, right\) pair"),
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


class LowRank(nn.Module):
    """As peft wraps a layer."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer


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
            nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(1, 1, 3)),
            TypeError,
            r"with an example input x, batch first, to_linear\(module, x\), .* and plan\(module, x\) take any module",
        ),
        (torch.ones(1, 1, 3, 3), TypeError, "got torch.Tensor; pass a layer; with a weight, pass a Geometry"),
        ("conv", TypeError, "got builtins.str; pass a layer"),
        (nn.Conv2d, TypeError, "got the class Conv2d; pass a layer, not its class"),
        (Squared(1, 1, 3), TypeError, "Squared. overrides forward.*pass a plain Conv2d"),
        (Standardised(1, 1, 3), TypeError, "Standardised. overrides _conv_forward"),
        (patched(), TypeError, "overrides forward"),
        (
            nn.LazyConv2d(1, 3),
            ValueError,
            "lazy and has no weights yet; run a batch through it first",
        ),
    ],
    ids=["linear", "sequential", "tensor", "str", "class", "forward", "_conv_forward", "patched", "lazy"],
)
def test_other_layers_are_refused(function, layer, error, message):
    with pytest.raises(error, match=message):
        function(layer, 5)


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions:UserWarning")
def test_quantized_layer_is_refused():
    quantized = pytest.importorskip("torch.ao.nn.quantized", reason="torch.ao is not in this torch")
    with pytest.raises(TypeError, match="convert the float layer it was made from"):
        to_linear(quantized.Conv2d(1, 1, 3), 5)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (torch.compile, "torch.compile made it: pass its _orig_mod"),
        (nn.DataParallel, "pass its module attribute, the layer that it wraps"),
        (torch.jit.script, "pass the layer that it was scripted or traced from"),
        (lambda conv: torch.jit.trace(conv, torch.ones(1, 1, 5, 5)), "pass the layer that it was scripted or traced"),
        (LowRank, "merge its low-rank update into its base_layer"),
    ],
    ids=["compile", "data-parallel", "script", "trace", "lora"],
)
def test_wrapped_layer_says_how_to_unwrap_it(wrap, message):
    with pytest.raises(TypeError, match=message):
        to_linear(wrap(nn.Conv2d(1, 1, 3)), 5)


@pytest.mark.parametrize("function", [to_matrix, plan, to_scipy, as_linear_operator])
def test_weight_and_geometry_in_place_of_a_layer(function):
    conv = nn.Conv2d(4, 6, 3, groups=2, padding=1, padding_mode="circular")
    geometry = Geometry.from_layer(conv, 5)
    result, expected = function(conv.weight, geometry), function(conv, 5)
    if function is plan:
        assert result == expected
    else:
        vector = np.ones(100, np.float32)
        if function is to_matrix:
            result, expected = result.detach().numpy(), expected.detach().numpy()
        np.testing.assert_array_equal(result @ vector, expected @ vector)
    with pytest.raises(TypeError, match=r"conv \(Conv2d\) must be a weight tensor if input_size is a Geometry"):
        function(conv, geometry)
    with pytest.raises(ValueError, match=r"weight must have shape \(6, 2, 3, 3\)"):
        function(conv.weight[:2], geometry)


def test_is_keyword_only_after_kernel_size():
    with pytest.raises(TypeError, match="positional argument"):
        Geometry(1, 1, (3,), 5)


def test_weight_that_is_not_the_layers_is_refused():
    conv = nn.Conv2d(4, 6, 3, groups=2)
    conv.weight = nn.Parameter(torch.zeros(6, 4, 3, 3))
    with pytest.raises(ValueError, match=r"weight must have shape \(6, 2, 3, 3\).* got \(6, 4, 3, 3\)"):
        to_matrix(conv, 5)
