"""Bounds of differences: they hold in rational arithmetic and in floating point, and are near to what is found."""

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from conv2affine import check, to_mlp
from conv2affine.network.equality.difference import Joint
from tests.network.models import PIECEWISE, build


def dense(seed, change, sizes=(3, 5, 4, 2)):
    """Two small chains that differ by random changes of this size."""
    torch.manual_seed(seed)
    layers = [layer for m, n in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(m, n), nn.ReLU())][:-1]
    first = nn.Sequential(*layers).double().eval()
    second = copy.deepcopy(first)
    for parameter in second.parameters():
        parameter.data += change * torch.randn_like(parameter)
    return first, second


def exact(model, x):
    """The outputs as fractions."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            x = [sum((Fraction(w) * v for w, v in zip(row, x, strict=True)), Fraction(b)) for row, b in rows]
        else:
            x = [max(v, Fraction(0)) for v in x]
    return x


@pytest.mark.diagonal
@pytest.mark.parametrize("change", [1e-6, 1e-3, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_in_rational_arithmetic(seed, change):
    first, second = dense(seed, change)
    low, high = torch.full((3,), -0.5), torch.tensor([0.5, 1.0, 0.25])
    result = check(first, second, torch.zeros(1, 3).double(), box=(low, high))
    generator = np.random.default_rng(seed)
    corners = [[float(b[n >> i & 1]) for i, b in enumerate(zip(low, high, strict=True))] for n in range(8)]
    points = [*corners, *generator.uniform(low, high, (100, 3)).tolist(), result.witness[0][0].tolist()]
    largest = 0
    for point in points:
        x = [Fraction(v) for v in point]
        largest = max(largest, *(abs(a - b) for a, b in zip(exact(first, x), exact(second, x), strict=True)))
    assert result.verdict == "different"
    assert Fraction(result.difference) <= largest * Fraction(1 + 1e-6)
    assert largest <= Fraction(result.bound) <= 10 * largest


def test_what_units_add_together():
    """Of all signs, the most; for a matrix of one sign nothing is gained, for others much."""
    generator = np.random.default_rng(0)
    part, weights = generator.normal(size=(40, 10)), generator.normal(size=(10, 3))
    parts = [part, np.abs(part[:5]), np.zeros((3, 10))]
    found = Joint(np.arange(10), np.zeros(10), parts).largest(weights)
    signs = np.array(list(np.ndindex(*[2] * 10))) * 2.0 - 1
    for row, weight in enumerate(weights.T):
        largest = sum(np.abs(signs * weight @ each.T).sum(axis=1).max() for each in parts) / 2
        assert largest <= found[row] <= sum(np.abs(each * weight).sum() for each in parts) / 2
        assert found[row] <= 1.6 * largest
    one_sign = Joint(np.arange(10), np.zeros(10), [np.abs(part)]).largest(np.abs(weights))
    np.testing.assert_allclose(one_sign, (np.abs(part) @ np.abs(weights)).sum(axis=0) / 2, rtol=1e-6)


def test_the_bound_of_an_affine_map_is_reached():
    first, second = dense(0, 0.1, (4, 3))
    result = check(first, second, torch.zeros(1, 4).double(), box=(-1, 1))
    assert result.bound == pytest.approx(result.difference, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bounds_hold_for_what_is_rounded(dtype):
    model = dense(0, 0, (6, 40, 40, 3))[0].to(dtype)
    order = torch.randperm(40)
    other = copy.deepcopy(model)  # sums of the same terms in another order
    other[0].weight.data, other[0].bias.data = model[0].weight[order].data, model[0].bias[order].data
    other[2].weight.data = model[2].weight[:, order].data
    result = check(model, other, torch.zeros(1, 6, dtype=dtype), box=(-1, 1))
    assert result.verdict == "equal"
    x = torch.rand(10_000, 6, dtype=dtype) * 2 - 1
    with torch.no_grad():
        largest = float((model(x) - other(x)).abs().max())
        exact_gap = float((model(x).double() - copy.deepcopy(model).double()(x.double())).abs().max())
    assert 0 < largest <= result.bound
    assert 0 <= exact_gap <= result.bound
    assert result.bound <= 1e4 * torch.finfo(dtype).eps


def test_a_chain_for_a_box_is_within_a_small_bound_there():
    """It has neither the ReLUs that do not bend in the box, nor the branches of max pooling that lose there."""
    model, x = build(PIECEWISE["vgg-bn"][0], torch.float32), torch.rand(1, 3, 8, 8)
    box = x - 0.01, x + 0.01
    chain = to_mlp(model, x, box=box)
    result = check(model, chain, x, box=box)
    assert result.verdict == "within"
    assert result.difference <= result.bound <= 2 * check(model, copy.deepcopy(model), x, box=box).bound


@pytest.mark.parametrize("swapped", [False, True], ids=["a-b", "b-a"])
def test_the_bound_through_max_pooling(swapped):
    """What both round does not add up over a window."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(12, 2)).eval()
    x = torch.rand(1, 1, 10, 10)
    plain = nn.Sequential(model[0], model[1], nn.AvgPool2d(4, divisor_override=1), *model[3:])
    pair = (copy.deepcopy(model), model) if swapped else (model, copy.deepcopy(model))
    bound = check(*pair, x, box=(0, 1)).bound
    assert bound <= check(plain, copy.deepcopy(plain), x, box=(0, 1)).bound / 4  # sums of 16


@pytest.mark.parametrize("n", [1, 3])
def test_a_relu_that_bends_passes_the_whole_difference(n):
    """relu(x + 0.01) - relu(x) is 0 or 0.01, at the ends of the box; of n inputs together, n times that."""
    first = nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 1)).double().eval()
    with torch.no_grad():
        for parameter, value in zip(first.parameters(), (torch.eye(n), 0, 1, 0), strict=True):
            parameter.copy_(torch.as_tensor(value).expand_as(parameter))
    second = copy.deepcopy(first)
    second[0].bias.data += 0.01
    result = check(first, second, torch.zeros(1, n).double(), box=(-1, 1))
    assert result.difference == pytest.approx(0.01 * n)
    assert 0.01 * n <= result.bound <= 0.01 * n + 1e-6
