"""Clips as ReLUs: as exact as the model in its own dtype, however far away the bounds are."""

import itertools

import pytest
import torch
from torch import nn

from conv2affine import to_mlp
from conv2affine.network.graph import Graph
from conv2affine.network.passes.to_relu import to_relu
from tests.network.models import Function

DTYPES = [torch.float32, torch.float64]
INF, MAX = torch.inf, torch.finfo(torch.float32).max
BOUNDS = [0.0, 1.0, 7.5, 500.0, 1e4, 1e30, MAX]
SIGNED = [*(-bound for bound in BOUNDS), *BOUNDS]
LOW, HIGH = zip(*itertools.product([-INF, *SIGNED], [*SIGNED, INF]), strict=True)


def clamp(low, high):
    return Function(lambda x: x.clamp(low, high))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 1e3, 1e5])
def test_digits_are_kept(scale, dtype):
    low, high = torch.tensor([LOW, HIGH], dtype=dtype)
    x = scale * torch.randn(50, len(low), generator=torch.Generator().manual_seed(0), dtype=dtype)
    model = clamp(low, high)
    difference = (to_mlp(model, x)(x) - model(x)).abs()
    assert (difference <= 16 * torch.finfo(dtype).eps * x.abs().clamp(min=1)).all()
    assert not difference[:, low >= high].any()  # high, whatever x is


@pytest.mark.parametrize("bounds", [(-500, 1), (-1e4, 1), (-MAX, 1), (-1e4, 1e4), (None, 1e4), (-1e4, None)], ids=str)
def test_one_bound_for_all(bounds):
    x, model = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)), clamp(*bounds)
    torch.testing.assert_close(to_mlp(model, x)(x), model(x), rtol=0, atol=1e-6)


UNITS = {
    "relu6": (0.0, 6.0, 2),
    "hardtanh": (-1.0, 1.0, 2),
    "one-is-large": (-500.0, 1.0, 2),
    "the-other-is-large": (-1.0, 500.0, 2),
    "both-are-large": (-500.0, 500.0, 2),  # and x itself, which the chain carries as relu(x) - relu(-x)
    "low": (0.1, INF, 1),
    "high": (-INF, 0.1, 1),
    "equal": (3.0, 3.0, 0),
    "crossed": (3.0, 2.0, 0),
    "largest-number": (-MAX, 1.0, 1),
    "both-largest": (-MAX, MAX, 0),
}


@pytest.mark.parametrize("case", UNITS.values(), ids=UNITS)
def test_units(case):
    low, high, units = case
    graph = Graph()
    x = graph.add_input((1, 1))
    graph.outputs.append(graph.add_step("clip", [x], (1, 1), {"low": low, "high": high}))
    nodes = to_relu(graph, torch.float32).nodes
    assert [node.kind for node in nodes if hasattr(node, "kind")] == ["relu"] * units


def test_a_bound_that_float64_passes_stays():
    x = torch.tensor([[-1e39, 0.5, 1e39]], dtype=torch.float64)
    assert torch.equal(to_mlp(clamp(-MAX, 1.0), x)(x), clamp(-MAX, 1.0)(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    x = (10 * torch.randn(50, 9, generator=torch.Generator().manual_seed(0))).to(dtype)
    for low, high in ((-500.0, 1.0), (-100.0, 100.0), (torch.finfo(dtype).min, torch.finfo(dtype).max)):
        torch.testing.assert_close(to_mlp(clamp(low, high), x)(x), x.clamp(low, high), atol=0.02, rtol=0.02)


def test_no_number_is_no_bound():
    with pytest.raises(NotImplementedError, match=r"clamp must be .*, and is not: its constants are not finite"):
        to_mlp(clamp(float("nan"), 1.0), torch.rand(2, 3))


def test_after_a_layer():
    model = nn.Sequential(nn.Linear(9, 9), clamp(-1e4, 1e4), nn.Linear(9, 3))
    x = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(to_mlp(model, x)(x), model(x), atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_bounds_near_the_largest_number_are_none_in_a_box(dtype):
    """As in language models for half precision: `hidden.clamp(-64504, 64504)`."""
    largest = torch.finfo(dtype).max * (1 - 1 / 64)
    model = nn.Sequential(nn.Linear(9, 9), clamp(-largest, largest), nn.Linear(9, 3)).to(dtype)
    x = torch.rand(50, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    mlp = to_mlp(model, x, box=(0.0, 1.0))
    assert not any(isinstance(module, nn.ReLU) for module in mlp)
    torch.testing.assert_close(mlp(x), model(x), atol=0.01, rtol=0)
