"""Bounds of graphs for a box: sound in floating point, and as tight as they are known to be."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch import nn

from conv2affine.network.equality.checking import _side
from conv2affine.network.graph import Graph
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Sparse
from conv2affine.network.passes.chain import chain
from conv2affine.network.passes.merge import merge
from conv2affine.network.passes.simplify import simplify
from conv2affine.network.passes.unread import without_unread
from conv2affine.network.proof.bounds import bounds
from conv2affine.network.proof.chains import chain_for_box
from conv2affine.network.proof.forward import Interval

FLOATS = (torch.float32, torch.float64)


def layers(*sizes, seed=0, scale=1.0):
    """Weights and biases."""
    generator = np.random.default_rng(seed)
    pairs = zip(sizes, sizes[1:], strict=False)
    return [(scale * generator.normal(size=(m, n)) / n**0.5, generator.normal(size=m) / 2) for n, m in pairs]


def graph_of(weights):
    """A graph of layers and ReLUs by turns, and its values before each ReLU."""
    graph, values = Graph(), []
    x = graph.add_input((1, weights[0][0].shape[1]))
    for matrix, bias in weights:
        if values:
            x = graph.add_step("relu", [values[-1]], values[-1].shape)
        values.append(graph.add_piece(AffineMap({x: Sparse(csr_array(matrix))}, bias), (1, len(bias))))
    graph.add_output(values[-1])
    return graph, values


def box(center, radius):
    return Interval(center - radius, center + radius)


def found(weights, interval, dtype=torch.float64, **options):
    graph, values = graph_of(weights)
    result = bounds(graph, {graph.inputs[0]: interval}, dtype, **options)
    return [result[value] for value in values]


def plain_interval(weights, low, high):
    """Interval bounds as in any textbook."""
    result = []
    for matrix, bias in weights:
        if result:
            low, high = np.maximum(low, 0), np.maximum(high, 0)
        positive, negative = np.maximum(matrix, 0), np.minimum(matrix, 0)
        low, high = positive @ low + negative @ high + bias, positive @ high + negative @ low + bias
        result.append((low, high))
    return result


def plain_crown(weights, low, high):
    """Backward bounds as in any textbook, of every row of every layer."""
    result = []
    for number in range(len(weights)):
        ends = []
        for sign in (1, -1):
            rows, constant = np.eye(len(weights[number][1])) * sign, 0
            for index in range(number, -1, -1):
                matrix, bias = weights[index]
                constant, rows = constant + rows @ bias, rows @ matrix
                if index:
                    a, b = result[index - 1]
                    upper = np.where(a >= 0, 1, np.where(b <= 0, 0, b / (b - a)))
                    lower = np.where(a >= 0, 1, np.where(b <= 0, 0, b > -a))
                    constant = constant + np.minimum(rows, 0) @ np.where((a < 0) & (b > 0), -a * upper, 0)
                    rows = np.maximum(rows, 0) * lower + np.minimum(rows, 0) * upper
            ends.append(sign * (constant + np.maximum(rows, 0) @ low + np.minimum(rows, 0) @ high))
        result.append(tuple(ends))
    return result


NETWORKS = {
    "shallow": (6, 8, 3),
    "deep": (5, 12, 12, 12, 12, 2),
    "wide": (3, 40, 30, 4),
}


@pytest.mark.parametrize("radius", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("sizes", NETWORKS.values(), ids=NETWORKS)
def test_forward_is_interval_arithmetic(sizes, radius):
    weights = layers(*sizes)
    interval = box(np.linspace(-1, 1, sizes[0]), radius)
    for (low, high), (plain_low, plain_high) in zip(
        found(weights, interval, backward=False), plain_interval(weights, *interval), strict=True
    ):
        np.testing.assert_allclose(low, plain_low, atol=1e-12)
        np.testing.assert_allclose(high, plain_high, atol=1e-12)
        assert (low <= plain_low).all()
        assert (high >= plain_high).all()


@pytest.mark.parametrize("radius", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("sizes", NETWORKS.values(), ids=NETWORKS)
def test_backward_is_no_wider_than_crown(sizes, radius):
    weights = layers(*sizes)
    interval = box(np.linspace(-1, 1, sizes[0]), radius)
    ours, plain = found(weights, interval), plain_crown(weights, *interval)
    assert (ours[-1].high - ours[-1].low <= 1.01 * (plain[-1][1] - plain[-1][0])).all()
    for (low, high), (forward_low, forward_high) in zip(ours, plain_interval(weights, *interval), strict=True):
        assert (low >= forward_low - 1e-9).all()
        assert (high <= forward_high + 1e-9).all()


def test_backward_by_hand():
    # a = x0 + x1, b = x0 - x1 + 1 for |x0|, |x1| <= 1: a in [-2, 2], b in [-1, 3]. Their lines:
    # relu(a) >= 0, as 2 is not > 2, and relu(a) <= a / 2 + 1; relu(b) >= b, and relu(b) <= 3/4 b + 3/4.
    # relu(a) + relu(b) <= 5/4 x0 - 1/4 x1 + 5/2 <= 4, where forward has 5.
    # relu(a) - relu(b) >= -3/4 (x0 - x1 + 1) - 3/4 >= -3, and <= (x0 + x1) / 2 + 1 - x0 + x1 - 1 <= 2, as forward.
    weights = [
        (np.array([[1.0, 1], [1, -1]]), np.array([0.0, 1])),
        (np.array([[1.0, 1], [-1, -1], [1, -1]]), np.zeros(3)),
    ]
    for backward, most in ((True, 4), (False, 5)):
        low, high = found(weights, box(np.zeros(2), 1.0), backward=backward)[-1]
        np.testing.assert_allclose([low, high], [[0, -most, -3], [most, 0, 2]], rtol=1e-12, atol=1e-12)


def exact(matrix):
    return np.vectorize(Fraction)(matrix)


@pytest.fixture
def no_rounding(monkeypatch):
    """As if the network was computed exactly: what is left is what the bounds round themselves."""
    monkeypatch.setattr("conv2affine.network.proof.forward.rounding", lambda counts, *rest: np.zeros(len(counts)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_bounds_hold_exactly(backward, seed, no_rounding):
    """No ReLU bends: the network is affine, and its smallest and largest outputs are rational numbers."""
    weights = layers(7, 9, 8, 6, seed=seed)
    weights = [(matrix, bias + (40, 400, 0)[number]) for number, (matrix, bias) in enumerate(weights)]
    generator = np.random.default_rng(seed)
    interval = box(generator.normal(size=7), generator.random(7) / 3)
    result = found(weights, interval, backward=backward)
    assert all((each.low > 0).all() for each in result[:-1])
    matrix, constant = exact(np.eye(7)), exact(np.zeros(7))
    for (weight, bias), (low, high) in zip(weights, result, strict=True):
        matrix, constant = exact(weight) @ matrix, exact(weight) @ constant + exact(bias)
        positive, negative = np.maximum(matrix, 0), np.minimum(matrix, 0)
        least = positive @ exact(interval.low) + negative @ exact(interval.high) + constant
        greatest = positive @ exact(interval.high) + negative @ exact(interval.low) + constant
        assert (exact(low) <= least).all()
        assert (exact(high) >= greatest).all()
    if backward:  # as tight as float64 tells
        np.testing.assert_allclose(result[-1].low, least.astype(float), atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_exactly_where_relus_bend(seed, no_rounding):
    weights = layers(4, 10, 8, 3, seed=seed)
    generator = np.random.default_rng(seed)
    interval = box(generator.normal(size=4), 0.5)
    result = found(weights, interval)
    assert any(((each.low < 0) & (each.high > 0)).any() for each in result)
    ends = np.stack(interval)
    for corner in np.ndindex(2, 2, 2, 2):
        x = exact(ends[list(corner), range(4)])
        for number, (weight, bias) in enumerate(weights):
            x = exact(weight) @ (np.maximum(x, 0) if number else x) + exact(bias)
            assert (exact(result[number].low) <= x).all()
            assert (exact(result[number].high) >= x).all()


def roundings(weight, x, bias):
    """Of each row of W x + b, if each entry, product and sum is rounded by as much as may be, in the worst order."""
    terms = np.sort(np.concatenate([weight * x, bias[:, None]], axis=1), axis=1)
    sums = [np.abs(np.cumsum(each, axis=1)[:, 1:]).sum(axis=1) for each in (terms, terms[:, ::-1])]
    return 2.0**-24 * (np.maximum(*sums) + 2 * np.abs(terms).sum(axis=1))


def test_the_worst_rounding_is_within():
    """All roundings of the sums have the sign that matters; the ReLUs do not bend."""
    (first, bias), (second, other) = layers(300, 200, 5)
    bias = bias + 30
    x = np.random.default_rng(0).normal(size=300)
    [hidden, (low, high)] = found([(first, bias), (second, other)], Interval(x, x), torch.float32)
    assert (hidden.low > 0).all()
    y = first @ x + bias
    worst = np.abs(second) @ roundings(first, x, bias) + roundings(second, y, other)
    z = second @ y + other
    assert (low <= z - worst).all()
    assert (high >= z + worst).all()
    assert (high - low <= 2 * 1.2 * worst).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_computed_numbers_are_within(dtype):
    """Of sums whose terms cancel, at one point: the bounds are nothing but rounding."""
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(50, 1000)) * 10.0 ** generator.integers(-3, 4, 1000)
    x = generator.normal(size=1000)
    x = torch.tensor(x, dtype=dtype).double().numpy()
    bias = -matrix @ x
    [(low, high)] = found([(matrix, bias)], Interval(x, x), dtype)
    computed = torch.tensor(matrix, dtype=dtype) @ torch.tensor(x, dtype=dtype) + torch.tensor(bias, dtype=dtype)
    assert (torch.tensor(low) <= computed).all()
    assert (torch.tensor(high) >= computed).all()
    assert (computed != 0).any()


def test_signs_stay_known():
    """What is a sum of numbers >= 0 is >= 0."""
    weights = [(np.array([[2.0, 3], [-1, -2]]), np.zeros(2))]
    [(low, high)] = found(weights, Interval(np.zeros(2), np.ones(2)), torch.float32)
    assert low[0] == 0 == high[1]


MAXIMA = {
    "max_pool": lambda x: nn.functional.max_pool1d(x[:, None], 4, 1)[:, 0],
    "maximum": lambda x: torch.maximum(x.flip(1), torch.maximum(x, x.roll(1, 1))),
    "minimum": lambda x: torch.minimum(x, x.flip(1)),
    "clip": lambda x: x.clamp(-0.5, 0.75),
    "abs": lambda x: x.abs(),
    "leaky_relu": lambda x: nn.functional.leaky_relu(x, 0.25),
}


@pytest.mark.parametrize("merged", [False, True], ids=["apart", "merged"])
@pytest.mark.parametrize("function", MAXIMA.values(), ids=MAXIMA)
def test_maxima_are_between_those_of_their_bounds(function, merged):
    """Of elements that are far apart: the bounds are reached, as those of a sum are not."""

    class Model(nn.Module):
        def forward(self, x):
            return function(x)

    x = torch.zeros(1, 7, dtype=torch.float64)
    low, high = np.linspace(-3, 1, 7), np.linspace(-1, 2.5, 7)
    side = _side(Model(), x)[0]
    graph = simplify(merge(side.graph, "always")) if merged else side.graph
    found = bounds(graph, {graph.inputs[0]: Interval(low, high)}, torch.float64, backward=False)
    ends = torch.cartesian_prod(*torch.tensor(np.stack([low, (low + high) / 2, high], axis=1)))
    y = function(torch.cat([ends, torch.zeros(1, 7).clip(torch.tensor(low), torch.tensor(high))]))
    least, greatest = found[graph.outputs[0]]
    np.testing.assert_allclose([least, greatest], [y.amin(0), y.amax(0)], atol=1e-12)
    assert (torch.tensor(least) <= y).all()
    assert (torch.tensor(greatest) >= y).all()


def test_many_readers():
    """A value read by two pieces, a ReLU and an output; and a ReLU of an input."""
    graph = Graph()
    x = graph.add_input((1, 2))
    y = graph.add_piece(AffineMap({x: Sparse(csr_array([[1.0, -1], [1, 1]]))}, np.zeros(2)), (1, 2))
    r, s = graph.add_step("relu", [y], y.shape), graph.add_step("relu", [x], x.shape)
    one = Sparse(csr_array(np.ones((1, 2))))
    z = graph.add_piece(AffineMap({y: one, r: Sparse(csr_array(-np.ones((1, 2)))), s: one}, np.ones(1)), (1, 1))
    graph.add_output(z)
    interval = box(np.array([-3.0, 0]), 1.0)  # the first element of the input is never > 0
    low, high = bounds(graph, {x: interval}, torch.float64)[z]
    points = np.random.default_rng(0).uniform(*interval, (1000, 2))
    y = np.stack([points[:, 0] - points[:, 1], points.sum(1)], 1)
    z = (y - np.maximum(y, 0) + np.maximum(points, 0)).sum(1) + 1
    assert low[0] <= z.min()
    assert high[0] >= z.max()


def test_overflow_is_refused():
    with pytest.raises(ValueError, match=r"stay finite in torch.float16"):
        found(layers(3, 3, scale=1e5), box(np.ones(3), 1.0), torch.float16)
    with pytest.raises(ValueError, match=r"finite factors in torch.float16, and one of 70000 is not"):
        found([(np.array([[-7e4]]), np.array([70.5]))], Interval(np.array([1e-3]), np.array([1e-2])), torch.float16)
    with pytest.raises(ValueError, match=r"fewer terms than torch.bfloat16 has digits for"):
        found(layers(1000, 2), box(np.zeros(1000), 1.0), torch.bfloat16)


def test_rows_that_no_layer_reads_leave_with_their_bounds():
    graph, _ = graph_of([(np.eye(3), np.zeros(3)), (np.array([[0.0, 1, 1]]), np.zeros(1))])
    for layers in (
        without_unread(chain(graph)),
        chain_for_box(graph, Interval(np.full(3, -1.0), np.arange(3.0)), torch.float64),
    ):
        assert [layer.shape for layer in layers] == [layer.matrix().shape for layer in layers] == [(2, 3), (1, 2)]
    assert np.round(layers[0].bounds.high, 9).tolist() == [1, 2]
