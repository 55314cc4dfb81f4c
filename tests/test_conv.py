"""From a linear layer to the convolution layer that it is."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from conv2affine import Geometry, conv_matrix, reference, to_conv, to_linear, to_matrix

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
LAYOUTS = [torch.sparse_csr, torch.sparse_csc, torch.sparse_coo]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layer_from_a_sparse_linear(layout):
    conv = nn.Conv2d(2, 3, 3, padding=1)
    fc = to_linear(conv, 6)
    fc.weight = nn.Parameter(to_matrix(conv, 6, layout=layout).detach())
    back = to_conv(fc, Geometry.from_layer(conv, 6))
    assert torch.equal(back.weight, conv.weight)
    assert torch.equal(back.bias, conv.bias)


@pytest.mark.parametrize("frozen", [True, False])
def test_layer_from_a_sparse_layer(frozen):
    conv = nn.Conv2d(2, 3, 3, padding=1).requires_grad_(not frozen)
    back = to_conv(to_linear(conv, 6, layout=torch.sparse_csr), Geometry.from_layer(conv, 6))
    assert torch.equal(back.weight, conv.weight)
    assert torch.equal(back.bias, conv.bias)
    assert back.weight.requires_grad is not frozen


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer_is_what_the_constructor_would_make(layer, bias, dtype):
    conv = layer(4, 6, (2, 3), stride=2, groups=2, bias=bias, dtype=dtype)
    state = torch.get_rng_state()
    back = to_conv(to_linear(conv, (5, 6)), Geometry.from_layer(conv, (5, 6)))
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(back) == repr(conv)
    assert vars(back).keys() == vars(conv).keys()
    assert all(type(value) is type(vars(conv)[name]) for name, value in vars(back).items())
    assert back.state_dict().keys() == conv.state_dict().keys()
    for parameter, expected in zip(back.parameters(), conv.parameters(), strict=True):
        assert type(parameter) is nn.Parameter
        assert parameter.is_contiguous()
        assert parameter.device == expected.device
        assert torch.equal(parameter, expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("weight_grad", [True, False])
@pytest.mark.parametrize("bias_grad", [True, False])
def test_layer_follows_the_linear(training, weight_grad, bias_grad):
    linear = to_linear(nn.Conv1d(1, 2, 3), 5).train(training)
    linear.weight.requires_grad_(weight_grad)
    linear.bias.requires_grad_(bias_grad)
    with torch.no_grad():
        conv = to_conv(linear, Geometry(1, 2, (3,), input_size=5))
    assert (conv.weight.requires_grad, conv.bias.requires_grad, conv.training) == (weight_grad, bias_grad, training)


def test_layer_from_a_parametrised_linear():
    conv = nn.Conv1d(2, 2, 3)
    linear = parametrizations.weight_norm(to_linear(conv, 5))
    with torch.no_grad():
        back = to_conv(linear, Geometry.from_layer(conv, 5))
    torch.testing.assert_close(back.weight, conv.weight)
    assert back.weight.requires_grad
    assert back.weight.is_leaf


@pytest.mark.parametrize("tolerance", [-1, float("nan"), "0.1"])
def test_tolerance_that_is_none_is_refused(tolerance):
    geometry = Geometry(1, 1, (2,), input_size=4)
    with pytest.raises(ValueError, match=r"tolerance \(.*\) must be a number that is at least 0"):
        to_conv(to_linear(nn.Conv1d(1, 1, 2), 4), geometry, tolerance=tolerance)


def test_linear_that_is_no_convolution_is_refused():
    linear = to_linear(nn.Conv1d(1, 1, 2), 4).requires_grad_(False)
    linear.weight.copy_(torch.tensor([[1.0, 2, 0, 0], [0, 1, 2, 0], [0, 0, 1, 5]]))
    geometry = Geometry(1, 1, (2,), input_size=4)
    # The mean of 2, 2 and 5 is 3: the residual is sqrt(1 + 1 + 4), the norm sqrt(36).
    message = r"is no convolution.*of 2\.45, which is 0\.408 of its norm \(6\), and tolerance is 1.19e-06"
    with pytest.raises(ValueError, match=message):
        to_conv(linear, geometry)
    with pytest.raises(ValueError, match=r"tolerance is 0\.4; check the geometry, or raise tolerance"):
        to_conv(linear, geometry, tolerance=0.4)
    assert to_conv(linear, geometry, tolerance=0.41).weight.tolist() == [[[1, 3]]]
    assert to_conv(linear, geometry, tolerance=float("inf")).weight.tolist() == [[[1, 3]]]


def test_bias_that_is_not_constant_is_refused():
    linear = to_linear(nn.Conv1d(1, 2, 2), 3).requires_grad_(False)
    linear.bias.copy_(torch.tensor([2.0, 6, 3, 3]))
    geometry = Geometry(1, 2, (2,), input_size=3)
    message = (
        r"linear.bias is not the same at all positions of a channel.*distance of 2\.83, which is 0\.371 of its norm"
    )
    with pytest.raises(ValueError, match=message):
        to_conv(linear, geometry)
    assert to_conv(linear, geometry, tolerance=0.4).bias.tolist() == [4, 3]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_default_tolerance_is_what_rounding_explains(dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 2, 5, generator=generator, dtype=torch.complex128 if dtype.is_complex else torch.float64)
    geometry = Geometry(2, 2, (5,), input_size=7, padding=2, padding_mode="reflect")
    linear = nn.Linear(14, 14, bias=False, dtype=dtype).requires_grad_(False)
    linear.weight.copy_(to_matrix(weight, geometry))
    rounding = 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(to_conv(linear, geometry).weight, weight.to(dtype), rtol=rounding, atol=rounding)
    linear.weight[0, 0] += 3 * rounding * torch.linalg.matrix_norm(to_matrix(weight, geometry)).item()
    with pytest.raises(ValueError, match=r"linear.weight is no convolution"):
        to_conv(linear, geometry)


def test_numbers_that_are_none_are_refused():
    linear = to_linear(nn.Conv1d(1, 1, 2), 3).requires_grad_(False)
    linear.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="at a distance of nan"):
        to_conv(linear, Geometry(1, 1, (2,), input_size=3), tolerance=float("inf"))


@pytest.mark.parametrize("tolerance", [None, 0.0, float("inf")])
def test_zero_is_a_convolution(tolerance):
    linear = nn.Linear(4, 3).requires_grad_(False)
    for parameter in linear.parameters():
        parameter.zero_()
    assert not to_conv(linear, Geometry(1, 1, (2,), input_size=4), tolerance=tolerance).weight.any()


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("linear", "error", "message"),
    [
        (nn.Conv1d(1, 1, 1), TypeError, "linear must be an nn.Linear, got Conv1d; from_matrix takes any matrix"),
        (Scaled(4, 3), TypeError, r"linear \(Scaled\) overrides forward"),
        (nn.LazyLinear(3), ValueError, r"linear \(LazyLinear\) is lazy and has no weight; run a batch"),
        (nn.Linear(4, 4), ValueError, r"linear.weight must have shape \(3, 4\).*got \(4, 4\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_bad_linears_are_refused(linear, error, message):
    with pytest.raises(error, match=message):
        to_conv(linear, Geometry(1, 1, (2,), input_size=4))


def test_linear_with_another_forward_of_its_own_is_refused():
    linear = nn.Linear(4, 3)
    linear.forward = lambda x: x
    with pytest.raises(TypeError, match="overrides forward"):
        to_conv(linear, Geometry(1, 1, (2,), input_size=4))


@pytest.mark.parametrize(
    "options",
    [
        {"padding": ((0, 1),)},
        {"padding": ((1, 2),), "kernel_size": (4,), "stride": 2},
        {"padding": ((2, 1),), "kernel_size": (4,)},
        {"padding": ((0, 1),), "transposed": True},
        {"padding": ((1, 2),), "kernel_size": (4,), "transposed": True},
    ],
    ids=str,
)
def test_padding_that_no_layer_has_is_refused(options):
    geometry = Geometry(1, 1, input_size=6, **{"kernel_size": (3,), **options})
    linear = nn.Linear(*geometry.shape[::-1])
    with pytest.raises(
        ValueError, match=r"geometry has padding \(\(\d, \d\),\).*from_matrix, and F.pad before F.conv1d"
    ):
        to_conv(linear, geometry, tolerance=float("inf"))


def test_padding_of_an_even_kernel_is_same():
    geometry = Geometry(1, 1, (2, 3), input_size=(4, 5), padding="same")
    matrix = conv_matrix(torch.arange(6.0).view(1, 1, 2, 3), (4, 5), padding="same")
    linear = nn.Linear(20, 20, bias=False).requires_grad_(False)
    linear.weight.copy_(matrix)
    conv = to_conv(linear, geometry)
    assert conv.padding == "same"
    assert torch.equal(reference.to_matrix(conv, (4, 5)), matrix)
