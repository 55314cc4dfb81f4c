"""Piecewise-linear operators alone, over their arguments: each as steps of a known kind, and as a chain."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conv2affine import to_linear_network, to_mlp
from tests.network.models import Converted, Function
from tests.network.rules.operands import COLUMNS, IMAGE, LINE, THIRDS, VOLUME, constant, kinds

pytestmark = pytest.mark.filterwarnings(r"ignore:index_reduce\(\) is in beta")

X, FEW, ORDERED = IMAGE, (3, 4), "minimum, maximum"
STEPS = {
    "relu": ("relu", F.relu, X),
    "relu6": ("clip", F.relu6, X),
    "leaky-relu": ("leaky_relu", lambda x: F.leaky_relu(x, 0.3), X),
    "leaky-relu-default": ("leaky_relu", F.leaky_relu, X),
    "leaky-relu-steep": ("leaky_relu", lambda x: F.leaky_relu(x, -1.5), X),
    "prelu": ("leaky_relu", nn.PReLU(), X),
    "prelu-channels": ("leaky_relu", lambda x: F.prelu(x, constant(2)), X),
    "hardtanh": ("clip", lambda x: F.hardtanh(x, -0.5, 0.25), X),
    "hardsigmoid": ("clip", lambda x: F.hardsigmoid(4 * x), X),
    "clamp-low": ("clip", lambda x: x.clamp(min=0.1), X),
    "clamp-high": ("clip", lambda x: x.clamp(max=-0.1), X),
    "clamp-crossed": ("clip", lambda x: x.clamp(0.5, -0.5), X),
    "clamp-tensors": ("clip", lambda x: torch.clamp(x, constant(6) - 1, constant(5, 1) + 1), X),
    "threshold": ("clip", lambda x: F.threshold(x, 0.2, 0.2), X),
    "abs": ("abs", torch.abs, X),
    "norm-1": ("abs", lambda x: x.norm(1, dim=1), X),
    "norm-1-axes": ("abs", lambda x: torch.linalg.vector_norm(x, 1, (1, -1), keepdim=True), X),
    "norm-inf": ("abs, window_max", lambda x: torch.linalg.vector_norm(x, torch.inf, 2), X),
    "norm-minus-inf": ("abs, window_min", lambda x: torch.linalg.vector_norm(x, -torch.inf, (2, 3)), X),
    "pairwise-distance-1": ("abs", lambda x: F.pairwise_distance(x, x.flip(1), p=1), X),
    "maximum": ("maximum", lambda x: torch.maximum(x, 1 - x), X),
    "fmax": ("maximum", lambda x: torch.fmax(x, 1 - x), X),
    "fmin": ("minimum", lambda x: torch.fmin(x, 1 - x), X),
    "maximum-broadcast": ("maximum", lambda x: torch.maximum(x.mean(2, keepdim=True), x), X),
    "maximum-constant": ("clip", lambda x: torch.maximum(constant(5, 6), x), X),
    "minimum": ("minimum", lambda x: torch.minimum(x, x.roll(1, 3)), X),
    "minimum-constant": ("clip", lambda x: torch.minimum(x, constant(6)), X),
    "amax": ("window_max", lambda x: x.amax((1, 3)), X),
    "amax-keepdim": ("window_max", lambda x: x.amax(2, keepdim=True), X),
    "amin": ("window_min", lambda x: x.amin((1, 3)), X),
    "min-dim": ("window_min", lambda x: x.min(1).values, X),
    "max-dim": ("window_max", lambda x: x.max(1).values, X),
    "max-pool-1d": ("window_max", nn.MaxPool1d(3, 2, 1), LINE),
    "max-pool-2d": ("window_max", nn.MaxPool2d((2, 3), (1, 2), (1, 0), dilation=(2, 1)), X),
    "max-pool-3d": ("window_max", nn.MaxPool3d(2, 1), VOLUME),
    "max-pool-ceil": ("window_max", nn.MaxPool2d(3, 2, 1, ceil_mode=True), X),
    "max-pool-3d-first-result": ("window_max", lambda x: F.max_pool3d(x, 2, return_indices=True)[0], VOLUME),
    "running-maximum": ("window_max", lambda x: x.cummax(2).values, X),
    "running-minimum": ("window_min", lambda x: x.cummin(-1).values, X),
    "scatter-maximum": (
        "window_max",
        lambda x: x.scatter_reduce(2, COLUMNS.expand(len(x), -1, -1, -1), x.flip(1), "amax"),
        X,
    ),
    "scatter-minimum-of-others": (
        "window_min",
        lambda x: x.scatter_reduce(2, COLUMNS.expand(len(x), -1, -1, -1), x.flip(1), "amin", include_self=False),
        X,
    ),
    "scatter-maximum-from-infinities": (
        "window_max",
        lambda x: x.new_full((len(x), 2, 3, 6), -torch.inf).scatter_reduce(
            2, THIRDS.expand(len(x), -1, -1, -1), x, "amax"
        ),
        X,
    ),
    "index-reduce-maximum": (
        "window_max",
        lambda x: x.index_reduce(2, torch.tensor([1, 3, 1]), constant(1, 2, 3, 6).expand(len(x), -1, -1, -1), "amax"),
        X,
    ),
    "sort": (ORDERED, lambda x: x.sort(2).values, FEW),
    "sort-descending": (ORDERED, lambda x: x.sort(dim=1, descending=True, stable=True)[0], FEW),
    "sort-pairs": (ORDERED, lambda x: x.view(len(x), -1, 2).sort().values.flatten(1), FEW),
    "topk": (ORDERED, lambda x: x.topk(2, 2).values, FEW),
    "topk-smallest": (ORDERED, lambda x: x.topk(3, 1, largest=False)[0], FEW),
    "kthvalue": (ORDERED, lambda x: x.kthvalue(2, 2).values, FEW),
    "median": (ORDERED, lambda x: x.median(2).values, FEW),
    "median-filter": (ORDERED, lambda x: x.unfold(1, 3, 1).unfold(2, 3, 1).flatten(3).median(-1).values, FEW),
    "nanmedian": (ORDERED, lambda x: x.nanmedian(1, keepdim=True).values, FEW),
    "quantile": (ORDERED, lambda x: torch.quantile(x, 0.3, dim=2), FEW),
    "clamp-values": (ORDERED, lambda x: torch.clamp(x, x.roll(1, 3), x.roll(2, 3) + 1), X),
    "extremes": ("window_max, window_min", lambda x: torch.stack(torch.aminmax(x, dim=2), 1), X),
    "distances-1": ("abs", lambda x: torch.cdist(x, x.flip(1), p=1), X),
    "distances-inf": ("abs, window_max", lambda x: torch.cdist(x, constant(3, 6), p=torch.inf), X),
    "max-pool-first-result": ("window_max", lambda x: F.max_pool2d(x, 2, return_indices=True)[0], X),
    "adaptive-max-pool-1d": ("window_max", nn.AdaptiveMaxPool1d(4), LINE),
    "adaptive-max-pool-2d": ("window_max", nn.AdaptiveMaxPool2d((2, 4)), X),
    "adaptive-max-pool-3d": ("window_max", nn.AdaptiveMaxPool3d(2), VOLUME),
}


KINDS = {name: set(kinds.split(", ")) for name, (kinds, *_) in STEPS.items()}
CASES = {name: case for name, (_, *case) in STEPS.items()}
NETWORKS, CHAINS = Converted(to_linear_network, CASES), Converted(to_mlp, CASES)
RELUS = Converted(functools.partial(to_linear_network, max_pool="relu"), CASES)


@pytest.mark.parametrize("name", STEPS)
def test_steps(name):
    model, net, number = NETWORKS.of(name)
    assert kinds(net.plan.rows, number) == KINDS[name]
    for size in (2, 5):
        x = constant(size, *CASES[name][1], seed=size)
        torch.testing.assert_close(net(x)[number], model.one(number, x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", STEPS)
def test_steps_in_a_chain(name):
    model, mlp, number = CHAINS.of(name)
    assert {type(layer).__name__ for layer in mlp} <= {"Flatten", "Linear", "SparseLinear", "ReLU"}
    for size in (2, 5):
        x = constant(size, *CASES[name][1], seed=size)
        result = mlp(x)[:, mlp.output_slices[number]]
        torch.testing.assert_close(result, model.one(number, x).flatten(1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["max-pool-2d", "max-pool-ceil", "amax"])
def test_max_pool_as_relus(name):
    model, net, number = RELUS.of(name)
    assert kinds(net.plan.rows, number) == {"relu"}
    x = constant(2, *CASES[name][1])
    torch.testing.assert_close(net(x)[number], model.one(number, x), atol=1e-12, rtol=0)


def test_steps_are_equal_only_with_equal_arguments():
    def steps(x):
        return [x.softmax(1), x.softmax(2), x.softmax(1), F.leaky_relu(x, 0.1), F.leaky_relu(x, 0.2), x**2, x**3]

    model, x = Function(steps), constant(2, *IMAGE)
    net = to_linear_network(model, x)
    assert len([row for row in net.plan.rows if not row.layout]) == 6
    for result, expected in zip(net(x), model(x), strict=True):
        torch.testing.assert_close(result, expected, atol=1e-12, rtol=0)
