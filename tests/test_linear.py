"""The linear layer: what a user of the drop-in sees."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import conv2affine
from conv2affine import reference, to_linear, torch_conv_layer_to_affine
from tests.cases import CASES
from tests.conftest import peak_bytes


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_layer_computes_the_same(case):
    conv = case.conv(torch.float64)
    x = torch.randn(3, conv.in_channels, *case.input_size, dtype=torch.float64)
    fc = to_linear(conv, case.input_size)
    assert type(fc) is nn.Linear
    torch.testing.assert_close(fc(x.flatten(1)), conv(x).flatten(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("kernel_size", [3, 4])
def test_loop_of_the_original_script(stride, padding, kernel_size):
    conv = nn.Conv2d(2, 5, kernel_size, stride=stride, padding=padding)
    image = torch.rand(2, 6, 7)
    fc = torch_conv_layer_to_affine(conv, image.shape[1:])
    assert torch.equal(fc.weight, reference.torch_conv_layer_to_affine(conv, (6, 7)).weight)
    res1 = fc(image.reshape(-1)).reshape(conv(image).shape)
    torch.testing.assert_close(res1, conv(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_is_what_the_constructor_would_make(bias):
    fc = to_linear(nn.Conv2d(1, 2, 3, bias=bias), 4)
    made = nn.Linear(16, 8, bias=bias)
    assert repr(fc) == repr(made)
    assert vars(fc).keys() == vars(made).keys()
    assert [name for name, _ in fc.named_parameters()] == [name for name, _ in made.named_parameters()]
    assert fc.state_dict().keys() == made.state_dict().keys()


def test_lives_the_life_of_a_layer():
    fc = to_linear(nn.Conv2d(1, 2, 3), 4)
    x = torch.rand(5, 16)
    assert torch.equal(copy.deepcopy(fc)(x), fc(x))
    file = io.BytesIO()
    torch.save(fc.state_dict(), file)
    file.seek(0)
    fresh = nn.Linear(16, 8)
    fresh.load_state_dict(torch.load(file))
    assert torch.equal(fresh(x), fc(x))
    fc(x).sum().backward()
    torch.testing.assert_close(fc.weight.grad, x.sum(0).expand(8, 16))
    assert fc.double().weight.dtype == torch.float64


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_is_the_layers(training):
    assert to_linear(nn.Conv1d(1, 1, 3).train(training), 4).training is training


@pytest.mark.parametrize("frozen", [True, False])
def test_requires_grad_as_the_layer(frozen):
    conv = nn.Conv1d(1, 1, 3)
    conv.weight.requires_grad_(not frozen)
    fc = to_linear(conv, 4)
    assert fc.weight.requires_grad is not frozen
    assert fc.bias.requires_grad
    with torch.no_grad():
        assert to_linear(conv, 4).weight.requires_grad is not frozen


def test_parameters_are_leaves_of_their_own():
    conv = nn.Conv1d(1, 1, 3)
    fc = to_linear(conv, 3)
    assert fc.weight.is_leaf
    assert fc.bias.is_leaf
    with torch.no_grad():
        fc.weight.zero_()
        fc.bias.zero_()
    assert conv.weight.count_nonzero() == 3
    assert conv.bias.count_nonzero() == 1


def test_random_number_generator_is_left_alone():
    conv = nn.Conv1d(1, 1, 3)
    state = torch.get_rng_state()
    to_linear(conv, 4)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrised_weights_require_grad_as_their_originals(norm, frozen):
    conv = norm(nn.Conv2d(2, 3, 3)).requires_grad_(not frozen)
    assert to_linear(conv, 5).weight.requires_grad is not frozen
    with torch.no_grad():
        assert to_linear(conv, 5).weight.requires_grad is not frozen


def test_subclass_that_changes_nothing_is_accepted():
    class Named(nn.Conv2d):
        pass

    conv, x = Named(1, 1, 3), torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(to_linear(conv, 4)(x.flatten(1)), conv(x).flatten(1))


def test_lazy_layer_after_its_first_batch():
    conv = nn.LazyConv2d(2, 3)
    x = torch.rand(2, 3, 5, 5)
    y = conv(x)
    torch.testing.assert_close(to_linear(conv, 5)(x.flatten(1)), y.flatten(1))


def test_original_names_are_exported():
    assert conv2affine.reference.enc_tuple((1, 2), (3, 4)) == 6
    assert conv2affine.reference.dec_tuple(6, (3, 4)) == (1, 2)
    assert list(conv2affine.reference.range2d(1, 2)) == [(0, 0), (0, 1)]


def test_nothing_but_the_matrix_is_allocated():
    peak = peak_bytes("conv = torch.nn.Conv2d(8, 8, 3, padding=1); to_linear(conv, 4)", "to_linear(conv, 32)")
    assert peak == pytest.approx(4 * 8192**2, rel=0.05)
