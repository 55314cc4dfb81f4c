"""Bounds of networks for a box: sound in floating point, and as tight as they are known to be."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from random_networks import PIECEWISE, Network, example_input, networks
from scipy.sparse import csr_array
from torch import nn

from conv2affine import check, to_mlp
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
    # y = relu(a) - relu(b) with a = x0 + x1, b = x0 - x1 + 1 for |x0|, |x1| <= 1: a in [-2, 2], b in [-1, 3].
    # Below: relu(a) >= 0, as 2 is not > 2, and relu(b) <= 3/4 b + 3/4; so y >= -3/4 (x0 - x1 + 1) - 3/4 >= -3.
    # Above: relu(a) <= a / 2 + 1, and relu(b) >= b; so y <= (x0 + x1) / 2 + 1 - x0 + x1 - 1 <= 2.
    weights = [(np.array([[1.0, 1], [1, -1]]), np.array([0.0, 1])), (np.array([[1.0, -1]]), np.zeros(1))]
    low, high = found(weights, box(np.zeros(2), 1.0))[-1]
    np.testing.assert_allclose([low, high], [[-3], [2]], rtol=1e-12)
    low, high = found(weights, box(np.zeros(2), 1.0), backward=False)[-1]
    np.testing.assert_allclose([low, high], [[-3], [2]], rtol=1e-12)


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
    with pytest.raises(ValueError, match=r"fewer terms than torch.bfloat16 has digits for"):
        found(layers(1000, 2), box(np.zeros(1000), 1.0), torch.bfloat16)


def run(mlp, x):
    """What each linear layer computes."""
    results = []
    for module in mlp:
        x = module(x)
        if isinstance(module, nn.Linear):
            results.append(x.double())
    return results


def points(low, high, count, seed=0):
    """Random points and corners of a box, and both ends."""
    generator = np.random.default_rng(seed)
    inner = generator.uniform(low, high, (count, len(low)))
    corners = np.where(generator.random((count, len(low))) < 0.5, low, high)
    return torch.from_numpy(np.clip(np.concatenate([inner, corners, [low, high]]), low, high))


def attack(mlp, x, low, high, steps=10):
    """The points, after steps towards smaller and larger outputs."""
    low, high = (torch.from_numpy(end).to(x.dtype) for end in (low, high))
    found = [x]
    for sign in (-1, 1):
        y = x.clone()
        for _ in range(steps):
            y.requires_grad_()
            (slope,) = torch.autograd.grad(sign * mlp(y).sum(), y)
            y = torch.clamp(y.detach() + slope.sign() * (high - low) / steps, low, high)
        found.append(y)
    return torch.cat(found)


def violations(mlp, x):
    return sum(int(((y < low) | (y > high)).sum()) for y, (low, high) in zip(run(mlp, x), mlp.bounds, strict=True))


RANDOM = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def check_random(network, radius, dtype):
    model, x = Network(*network).to(dtype), example_input(network[0])[:1].to(dtype)
    generator = np.random.default_rng(0)
    low = x.double().numpy().ravel() - radius * generator.random(x.numel())
    high = x.double().numpy().ravel() + radius * generator.random(x.numel())
    mlp = to_mlp(model, x, box=(low.reshape(x.shape), high.reshape(x.shape)))
    given = attack(mlp, points(low, high, 100).to(dtype), low, high)
    with torch.no_grad():
        assert violations(mlp, given) == 0
        expected = model(given.view(-1, *x.shape[1:])).flatten(1)
        scale = expected.abs().max().clamp(min=1)
        torch.testing.assert_close(mlp(given), expected, atol=1e3 * torch.finfo(dtype).eps * scale, rtol=0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@RANDOM
@given(networks(PIECEWISE), st.sampled_from([0.001, 0.1, 3.0]))
@example((1, [("conv", 0, 0), ("max_pool", 1, 0), ("conv", 2, 0), ("abs", 3, 0)]), 0.1)
@example((2, [("conv", 0, 0), ("relu", 1, 0), ("conv", 2, 0), ("relu", 3, 0), ("add", 4, 0), ("relu", 5, 0)]), 0.1)
def test_no_bound_is_violated(dtype, network, radius):
    check_random(network, radius, dtype)


@pytest.mark.long
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@settings(RANDOM, max_examples=150)
@given(networks(PIECEWISE), st.sampled_from([0.001, 0.03, 0.3, 3.0, 100.0]))
def test_no_bound_of_many_networks_is_violated(dtype, network, radius):
    check_random(network, radius, dtype)


def net(*layers, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(*layers).eval()


def around(x, radius):
    return x - radius, x + radius


def count(mlp):
    """Units, and those whose ReLU bends."""
    hidden = mlp.bounds[:-1]
    return sum(len(low) for low, _ in hidden), sum(int(((low < 0) & (high > 0)).sum()) for low, high in hidden)


def test_a_point_has_no_relu_that_bends():
    model = net(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Hardtanh(), nn.Flatten())
    x = torch.rand(1, 1, 8, 8)
    mlp = to_mlp(model, x, box=(x, x))
    assert count(mlp)[1] == 0
    low, high = mlp.bounds[-1]
    assert 0 < (high - low).max() < 1e-5
    torch.testing.assert_close(mlp(x), model(x).flatten(1))


def test_an_affine_network_in_a_box_is_one_layer():
    model = net(nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 3))
    nn.init.constant_(model[0].bias, 10.0)
    mlp = to_mlp(model, torch.rand(1, 3), box=(-1, 1))
    assert [type(module) for module in mlp] == [nn.Flatten, nn.Linear]
    assert count(mlp) == (0, 0)


def test_what_is_zero_goes_with_what_only_it_reads():
    model = net(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1], [1, -1], [2, 0]]))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.eye(4, 3))  # the third unit is read by the third alone
        model[2].bias.copy_(torch.tensor([-0.5, -0.5, -10, -1]))
    mlp = to_mlp(model, torch.rand(1, 2), box=(-1, 1))
    assert [low.shape for low, _ in mlp.bounds] == [(2,), (2,), (1,)]


def test_a_max_pool_with_known_winners_needs_no_relu():
    model = net(nn.MaxPool1d(2))
    x = torch.tensor([[[1.0, 2, 5, 3]]])
    mlp = to_mlp(model, x, box=around(x, 0.4))
    assert mlp[1].weight.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    assert count(to_mlp(model, x, box=around(x, 0.6))) == (2 * 4 - 4, 1)


def test_what_is_carried_has_one_unit_where_its_sign_is_known():
    class Skip(nn.Module):
        def forward(self, x):
            return torch.relu(x.flip(1) - 0.5) + x

    x = torch.tensor([[0.6, -0.4]])
    assert [len(low) for low, _ in to_mlp(Skip(), x, box=around(x, 0.1)).bounds] == [1 + 2, 2]
    assert [len(low) for low, _ in to_mlp(Skip(), x, box=around(x, 0.5)).bounds] == [1 + 1 + 2, 2]
    mlp = to_mlp(Skip(), x, box=around(x, 0.5))
    with torch.no_grad():
        assert violations(mlp, points(*(end.numpy() for end in mlp.box), 100).float()) == 0


def test_several_inputs_are_in_a_box():
    class Two(nn.Module):
        def forward(self, a, b):
            return torch.relu(a.flatten(1) - b), b

    a, b = torch.rand(1, 2, 2), torch.rand(1, 4)
    mlp = to_mlp(Two(), (a, b), box=((0, torch.full((4,), 2)), (1, np.full((1, 4), 3.0))))
    assert [end.tolist() for end in mlp.box] == [[0.0] * 4 + [2.0] * 4, [1.0] * 4 + [3.0] * 4]
    assert len(mlp) == 2
    assert not mlp[1].weight[:4].any()
    for box in (mlp.box, tuple(end.numpy() for end in mlp.box)):
        assert [*map(torch.equal, to_mlp(Two(), (a, b), box=box).box, mlp.box)] == [True, True]


def test_a_box_may_be_the_vector_of_all_elements():
    x = torch.rand(1, 1, 4, 4)
    model = net(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    box = x.flatten() - 0.1, x.flatten() + 0.1
    mlp = to_mlp(model, x, box=(x - 0.1, x + 0.1))
    for each in (box, mlp.box, [end.tolist() for end in mlp.box]):
        assert [*map(torch.equal, to_mlp(model, x, box=each).box, mlp.box)] == [True, True]
    assert check(model, mlp, x, box=mlp.box).verdict == "within"


def test_whole_numbers_are_compared_in_the_box():
    class Image(nn.Module):
        def forward(self, x):
            return torch.relu(x.float() / 255 - 0.5)

    x = torch.randint(0, 256, (1, 5), dtype=torch.uint8)
    assert len(to_mlp(Image(), x, box=(0, 100.5))) == 2
    with pytest.raises(ValueError, match=r"box must hold a number of torch.uint8 for each element, and has none"):
        to_mlp(Image(), x, box=(0.1, 0.9))


@pytest.mark.parametrize(
    ("box", "error", "message"),
    [
        (3, TypeError, r"box must be a pair of bounds, \(low, high\), got int"),
        ((0, 1, 2), TypeError, r"box must be a pair of bounds"),
        (("a", 1), TypeError, r"box\[0\] must hold real numbers, got str$"),
        ((0, 1j), TypeError, r"box\[1\] must hold real numbers"),
        ((0, float("nan")), ValueError, r"box\[1\] must be finite, got nan"),
        (
            (1, 0),
            ValueError,
            r"box must have low <= high, and 4 of 4 elements have not, the first of them element 0: 1.0",
        ),
        (
            (0, torch.ones(3)),
            ValueError,
            r"one sample of 'input', or be the vector of its elements, .* got shape \(3,\)",
        ),
        ((torch.zeros(2, 4), 1), ValueError, r"box\[0\] must be a number, or broadcast"),
        (([[1, 2], [3]], 1), ValueError, r"box\[0\] must be a number or an array, got list"),
        ((0, torch.tensor(1j)), TypeError, r"box\[1\] must hold real numbers, got a tensor of torch.complex64"),
        ((torch.zeros(1, 4).to_sparse(), 1), TypeError, r"box\[0\] must hold real numbers, got .* torch.sparse_coo"),
        ((-1e300, 1), ValueError, r"box must be finite in torch.float32, and is from -1e\+300 to 1;"),
    ],
    ids=[
        *("no pair", "three", "text", "complex", "nan", "empty", "wrong size", "two samples", "ragged"),
        *("complex tensor", "sparse", "beyond float32"),
    ],
)
def test_boxes_are_checked(box, error, message):
    with pytest.raises(error, match=message):
        to_mlp(net(nn.Linear(4, 2)), torch.rand(1, 4), box=box)


def test_the_box_is_shown_and_stays():
    mlp = to_mlp(net(nn.Linear(2, 2), nn.ReLU()), torch.rand(1, 2), box=(0, 1))
    shown = "for 2 inputs from 0 to 1, each within 1"
    assert f"\n  {shown}\n" in repr(mlp)
    assert str(mlp.plan).endswith(f"\n{shown}")
    assert shown in repr(mlp.plan)
    assert shown in mlp.plan._repr_html_()
    other = pickle.loads(pickle.dumps(copy.deepcopy(mlp)))
    assert repr(other) == repr(mlp)
    assert torch.equal(other.bounds[0][0], mlp.bounds[0][0])
    assert shown not in repr(mlp[:2])
    assert not hasattr(to_mlp(net(nn.Linear(2, 2)), torch.rand(1, 2)), "bounds")
    assert not hasattr(mlp[:2], "bounds")


@pytest.mark.parametrize(
    ("dtype", "others", "is_refused"),
    [
        (torch.float32, [torch.float64], False),
        (torch.float32, [torch.float64, torch.float32], False),
        (torch.float32, [torch.float16], True),
        (torch.float32, [torch.float16, torch.float32], True),
        (torch.float16, [torch.bfloat16], True),
        (torch.bfloat16, [torch.float16], True),
        (torch.bfloat16, [torch.float32], False),
    ],
    ids=str,
)
def test_bounds_are_of_a_chain_that_keeps_its_numbers(dtype, others, is_refused):
    mlp = to_mlp(net(nn.Linear(2, 2), nn.ReLU()).to(dtype), torch.rand(1, 2, dtype=dtype), box=(0, 1))
    bounds = mlp.bounds
    for other in others:
        nn.ModuleList([mlp]).to(other)
    mlp = pickle.loads(pickle.dumps(copy.deepcopy(mlp)))
    assert hasattr(mlp, "bounds") is not is_refused
    if not is_refused:
        assert torch.equal(mlp.bounds[0][0], bounds[0][0])
        return
    expected = f"bounds hold for a chain in {dtype}, and this one was converted to {others[0]}"
    with pytest.raises(AttributeError, match=expected):
        _ = mlp.bounds


def test_bounds_are_of_the_weights_that_are_loaded():
    mlp = to_mlp(net(nn.Linear(2, 2), nn.ReLU()), torch.rand(1, 2), box=(0, 1))
    mlp.load_state_dict({name: weight.half() for name, weight in mlp.state_dict().items()}, assign=True)
    assert not hasattr(mlp, "bounds")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rounding_to_the_dtype_stays_in_the_box(dtype):
    """0.1 in float32 is more than 0.1."""
    mlp = to_mlp(nn.Flatten(), torch.ones(1, 1, dtype=dtype), box=(0.1, 0.1))
    assert (mlp.bounds[0][0] <= 0.1).all()  # what is only copied is not rounded again
    with torch.no_grad():
        assert violations(mlp, torch.full((1, 1), 0.1, dtype=dtype)) == 0


def test_an_image_leaves_few_relus_that_bend():
    model = net(
        nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4), (16, 16), mode="bilinear")
    mlp = to_mlp(model, x, box=around(x, 1 / 255))
    units, bent = count(mlp)
    assert bent <= 0.1 * 1024
    assert units <= 0.7 * 1024


def test_rows_that_no_layer_reads_leave_with_their_bounds():
    graph, _ = graph_of([(np.eye(3), np.zeros(3)), (np.array([[0.0, 1, 1]]), np.zeros(1))])
    for layers in (
        without_unread(chain(graph)),
        chain_for_box(graph, Interval(np.full(3, -1.0), np.arange(3.0)), torch.float64),
    ):
        assert [layer.shape for layer in layers] == [layer.matrix().shape for layer in layers] == [(2, 3), (1, 2)]
    assert np.round(layers[0].bounds.high, 9).tolist() == [1, 2]
