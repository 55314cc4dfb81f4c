"""Layers whose weight or bias is computed: every function uses that of the next forward, and changes nothing."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from conv2affine import (
    Geometry,
    as_linear_operator,
    plan,
    reference,
    to_bias,
    to_linear,
    to_matrix,
    to_scipy,
    torch_conv_layer_to_affine,
)
from conv2affine.convolution.arguments import LAYERS
from conv2affine.convolution.parameters import weight_and_bias
from tests.conftest import long_but

pytestmark = pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm).* is deprecated:FutureWarning")

SIZES = {1: (6,), 2: (5, 4), 3: (3, 4, 3)}
FUNCTIONS = [to_matrix, to_bias, to_linear, torch_conv_layer_to_affine, plan, to_scipy, as_linear_operator]
FUNCTIONS += [Geometry.from_layer, reference.to_matrix, reference.to_bias, reference.to_linear, reference.output_size]


class Noise(nn.Module):
    """A parametrization that draws random numbers, and counts its calls in a buffer and in an attribute."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.seen = 0

    def forward(self, weight):
        self.calls += 1
        self.seen += 1
        return weight + self.calls + torch.randn_like(weight)


def twice_pruned(conv):
    return prune.random_unstructured(prune.l1_unstructured(conv, "weight", 0.3), "weight", 0.3)


def pruned_and_normalised(conv):
    prune.random_unstructured(conv, "bias", 0.5)
    return nn.utils.weight_norm(conv)


def pruned_and_parametrised(conv):
    parametrizations.spectral_norm(conv)
    return prune.random_unstructured(conv, "bias", 0.5)


def noisy(conv):
    parametrize.register_parametrization(conv, "bias", Noise())
    parametrize.register_parametrization(conv, "weight", Noise())
    return conv


def observed(conv):
    """A layer with hooks that compute no parameter, and an attribute that no copy could be made of."""
    conv.register_forward_pre_hook(lambda conv, inputs: None)
    conv.pipe = (number for number in range(3))
    return prune.l1_unstructured(conv, "weight", 0.5)


WAYS = {
    "plain": lambda conv: conv,
    "prune-l1": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    "prune-ln": lambda conv: prune.ln_structured(conv, "weight", 0.5, n=2, dim=0),
    "prune-mask": lambda conv: prune.custom_from_mask(conv, "weight", torch.rand(conv.weight.shape) < 0.5),
    "prune-bias": lambda conv: prune.l1_unstructured(conv, "bias", 0.5),
    "prune-twice": twice_pruned,
    "weight_norm": parametrizations.weight_norm,
    "weight_norm-hook": nn.utils.weight_norm,
    "weight_norm-hook-dim": lambda conv: nn.utils.weight_norm(conv, dim=2),
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm-hook": nn.utils.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "noise": noisy,
    "prune-and-weight_norm-hook": pruned_and_normalised,
    "prune-and-spectral_norm": pruned_and_parametrised,
    "other-hook": observed,
}


def made(way, layer=nn.Conv2d, training=True, dtype=torch.float64):
    return WAYS[way](layer(2, 4, 2, padding=1, dtype=dtype)).train(training)


def size_of(conv):
    return SIZES[len(conv.kernel_size)]


def snapshot(conv):
    """Everything that a function could change, as numbers and identities."""
    modules = dict(conv.named_modules())
    attributes = {
        (name, key): id(value) if isinstance(value, (torch.Tensor, nn.Module)) else copy_of(value)
        for name, module in modules.items()
        for key, value in vars(module).items()
    }
    tensors = {**dict(conv.named_parameters()), **dict(conv.named_buffers()), **vars(conv)}
    numbers = {
        name: (tensor._version, tensor.dtype, tensor.tolist(), tensor.grad is None or tensor.is_leaf)
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor)
    }
    return attributes, numbers, torch.get_rng_state().tolist()


def copy_of(value):
    return {key: id(item) for key, item in value.items()} if isinstance(value, dict) else value


# Two of the layers before each commit: what computes a weight does not look at their number of axes.
EACH_LAYER = long_but((nn.Conv2d, nn.ConvTranspose1d), LAYERS)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layer", EACH_LAYER, ids=lambda layer: layer.__name__)
@pytest.mark.parametrize("way", WAYS)
def test_results_are_the_next_forwards_and_nothing_changes(way, layer, training):
    conv = made(way, layer, training)
    size = size_of(conv)
    before = snapshot(conv)
    results = {}
    for function in FUNCTIONS * 2:
        results[function] = function(conv, size)
        assert snapshot(conv) == before, function
    x = torch.arange(3 * 2 * torch.Size(size).numel(), dtype=torch.float64).view(3, 2, *size).sin()
    torch.set_rng_state(torch.tensor(before[-1], dtype=torch.uint8))
    y = conv(x).flatten(1)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(results[to_linear](x.flatten(1)), y, **close)
    matrix, bias = results[to_matrix], results[to_bias]
    torch.testing.assert_close(x.flatten(1) @ matrix.T + bias, y, **close)
    torch.testing.assert_close(results[reference.to_linear](x.flatten(1)), y, **close)
    expected = (y - bias).detach().numpy()
    for product in (results[to_scipy] @ x.flatten(1).numpy().T, results[as_linear_operator] @ x.flatten(1).numpy().T):
        np.testing.assert_allclose(product.T, expected, **close)
    assert results[plan].dtype == torch.float64


def loaded(way):
    torch.manual_seed(1)
    conv = made(way)
    conv.load_state_dict(copy.deepcopy(made(way).state_dict()))
    return conv


def stepped(way):
    conv = made(way)
    conv(torch.ones(1, 2, 5, 4, dtype=torch.float64)).sum().backward()
    torch.optim.SGD(conv.parameters(), lr=0.1).step()
    return conv


def doubled(way):
    return made(way, dtype=torch.float32).double()


@pytest.mark.parametrize("state", [loaded, stepped, doubled])
@pytest.mark.parametrize("way", WAYS)
def test_parameters_that_changed_since_the_last_forward(way, state):
    """The hooks of prune, weight_norm and spectral_norm leave a stale weight behind."""
    conv = state(way)
    assert plan(conv, (5, 4)).dtype == torch.float64
    rng = torch.get_rng_state()
    linear = to_linear(conv, (5, 4))
    x = torch.linspace(-1, 1, 120, dtype=torch.float64).view(3, 2, 5, 4)
    torch.set_rng_state(rng)
    torch.testing.assert_close(linear(x.flatten(1)), conv(x).flatten(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_reach_the_original_parameters_again_and_again(way):
    conv, x = made(way), torch.linspace(-1, 1, 40, dtype=torch.float64).view(1, 2, 5, 4)
    upstream = torch.linspace(1, 2, 4 * 6 * 5, dtype=torch.float64)
    rng = torch.get_rng_state()
    ours = []
    for _ in range(2):
        conv.zero_grad()
        ((to_matrix(conv, (5, 4)) @ x.flatten() + to_bias(conv, (5, 4))) * upstream).sum().backward()
        ours.append([parameter.grad.clone() for parameter in conv.parameters()])
    conv.zero_grad()
    torch.set_rng_state(rng)
    (conv(x).flatten() * upstream).sum().backward()
    theirs = [parameter.grad for parameter in conv.parameters()]
    for gradients in ours:
        torch.testing.assert_close(gradients, theirs, rtol=1e-10, atol=1e-10)


def test_own_parameters_where_nothing_computes_them():
    conv = nn.Conv1d(1, 2, 3)
    conv.register_forward_pre_hook(lambda conv, inputs: None)
    weight, bias = weight_and_bias(conv)
    assert weight is conv.weight
    assert bias is conv.bias


def test_other_hooks_are_not_called():
    conv, called = nn.Conv1d(1, 2, 3), []
    conv.register_forward_pre_hook(lambda conv, inputs: called.append(1))
    to_matrix(prune.l1_unstructured(conv, "weight", 0.5), 5)
    assert not called


@pytest.mark.parametrize("way", ["spectral_norm", "noise"])
def test_cached_parametrizations(way):
    conv = made(way)
    x = torch.ones(1, 2, 5, 4, dtype=torch.float64)
    with parametrize.cached():
        y = conv(x).flatten(1)  # what forward computed, all others read
        torch.testing.assert_close(to_linear(conv, (5, 4))(x.flatten(1)), y, rtol=1e-12, atol=1e-12)
        assert parametrize._cache.keys() <= {(id(conv), name) for name in ("weight", "bias")}
    with parametrize.cached():
        to_matrix(conv, (5, 4))
        assert not parametrize._cache


def test_shared_parametrization_modules_stay_shared():
    conv, noise = nn.Conv1d(2, 2, 3, dtype=torch.float64), Noise()
    parametrize.register_parametrization(conv, "weight", noise)
    parametrize.register_parametrization(conv, "bias", noise)
    rng = torch.get_rng_state()
    linear, x = to_linear(conv, 6), torch.ones(1, 2, 6, dtype=torch.float64)
    torch.set_rng_state(rng)
    torch.testing.assert_close(linear(x.flatten(1)), conv(x).flatten(1))


def test_compiled_call_agrees():
    conv = made("spectral_norm")
    expected = to_matrix(conv, (5, 4))
    compiled = torch.compile(lambda: to_matrix(conv, (5, 4)), backend="eager")
    torch.testing.assert_close(compiled(), expected)
