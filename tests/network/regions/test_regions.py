"""The affine map around a point, against jacrev, and the region where it holds, against points around it."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

import conv2affine
from conv2affine import linear_region, to_mlp
from conv2affine.network.regions import local as local_module
from conv2affine.network.regions import nearest
from conv2affine.network.regions.local import LocalMap
from tests.conftest import long_but
from tests.network.models import PIECEWISE, Function, build, samples
from tests.network.random_networks import PIECEWISE as STEPS
from tests.network.random_networks import Network, example_input, networks

# Each kind of step, with parameters of every form.
KINDS = {
    "leaky": nn.LeakyReLU(0.2),
    "prelu": nn.PReLU(2),
    "relu6": nn.ReLU6(),
    "clip": nn.Hardtanh(-0.2, 0.3),
    "upper bound": Function(lambda x: x.clamp(max=0.1)),
    "abs": Function(torch.abs),
    "maximum": Function(lambda x: torch.maximum(x, x.flip(2))),
    "minimum": Function(lambda x: torch.minimum(2 * x, x.roll(1, 2) + 0.1)),
    "max pool": nn.MaxPool2d(3, 2, 1),
    "min pool": Function(lambda x: -F.max_pool2d(-x, 2)),
    "amin": Function(lambda x: x.amin(3)),
    "amax": Function(lambda x: x.amax((2, 3))),
    "mask": Function(lambda x: torch.where(x > 0, x, 0.1 * x) + torch.sign(x) * F.relu(x.abs() - 0.1)),
}


def family(name):
    make, shape = PIECEWISE[name]
    return build(make), samples(3, *shape)


def kind(name):
    """A network with this step in its middle."""
    return build(lambda: nn.Sequential(nn.Conv2d(2, 2, 3), KINDS[name], nn.Flatten())), samples(3, 2, 7, 7)


CASES = {**dict.fromkeys(PIECEWISE, family), **dict.fromkeys(KINDS, kind)}
SHORT = ("vgg-bn", "temporal", "clip", "maximum", "min pool")
each_case = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name not in SHORT)) for name in CASES]
)


@cache
def case(name):
    """A model, three points, and the region of the first of them."""
    model, x = CASES[name](name)
    return model, x, linear_region(model, x[:1])


def jacobian(model, x):
    return torch.func.jacrev(lambda x: model(x[None]).flatten())(x).flatten(1).detach()


def pattern(region, points):
    """The pattern that the region of each point has."""
    sides = LocalMap(region._local.graph, points.flatten(1).numpy()).sides.values()
    return dict(zip(region.pattern, (torch.from_numpy(side.pattern) for side in sides), strict=True))


def decided(region, points):
    """Where no input moves two candidates that are equal: else any of them may be taken, as in a window of zeros."""
    local = LocalMap(region._local.graph, points.flatten(1).numpy())
    sides, ends = local.sides.values(), np.cumsum([side.is_wall.shape[1] for side in local.sides.values()])
    equal = np.split((local.walls[:, 0] == 0) & local.is_wall, ends[:-1], 1)
    masks = (torch.from_numpy(~side.by_element(part)) for side, part in zip(sides, equal, strict=True))
    return dict(zip(region.pattern, masks, strict=True))


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@each_case
def test_map_is_the_jacobian_and_the_rest(name):
    model, x, region = case(name)
    expected = torch.stack([jacobian(model, point) for point in x])
    rest = model(x).detach().flatten(1) - (expected @ x.flatten(1)[..., None])[..., 0]
    regions = linear_region(model, x)
    torch.testing.assert_close(regions.weight, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(regions.bias, rest, atol=1e-10, rtol=0)
    torch.testing.assert_close(region.weight, expected[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(region.bias, rest[0], atol=1e-10, rtol=0)


@each_case
def test_region_ends_where_one_element_changes_its_piece(name):
    _, x, region = case(name)
    x = x[:1]
    g, h = region.constraints
    norms = g.to_dense().norm(dim=1)
    distances = torch.where(norms > 0, (h - g @ x.flatten()) / norms, torch.inf)
    torch.testing.assert_close(region.radius, distances.min())
    assert region.radius > 0
    # Within the radius, in any direction.
    directions = samples(20, x.numel())
    inside = x.flatten() + 0.999 * region.radius * directions / directions.norm(dim=1, keepdim=True)
    assert region.contains(inside.view(-1, *x.shape[1:])).all()
    here, clear = pattern(region, x), decided(region, x)
    assert all((steps == here[name]).all() for name, steps in pattern(region, inside).items())
    # Through the nearest wall: overlapping windows can have the same one.
    number = int(distances.argmin())
    normal = g.to_dense()[number] / norms[number]
    nearest = distances < region.radius * (1 + 1e-9)
    walls = {name: int(nearest[rows].sum()) for name, rows in region.wall_slices.items()}
    for factor, changes in ((0.999, dict.fromkeys(walls, 0)), (1.001, walls)):
        point = (x.flatten() + factor * region.radius * normal).view(x.shape)
        assert region.contains(point).tolist() == [factor < 1]
        there = pattern(region, point)
        assert {n: int(((there[n] != here[n]) & clear[n]).sum()) for n in here} == changes


@pytest.mark.long
@given(networks(STEPS))
@settings(max_examples=10, deadline=None)
def test_random_networks(drawn):
    axes, steps = drawn
    model, x = Network(axes, steps), example_input(axes)
    regions = linear_region(model, x)
    # Within the region the map is the network; at x itself even where a step is at a wall.
    product = (regions.weight @ x.flatten(1)[..., None])[..., 0] + regions.bias
    torch.testing.assert_close(product, model(x).detach().flatten(1), atol=1e-9, rtol=1e-9)
    assert regions.contains(x).all()
    move = 0.5 * regions.radius.clamp(max=1)[:, None] * F.normalize(samples(3, x[0].numel()))
    product = (regions.weight @ (x.flatten(1) + move)[..., None])[..., 0] + regions.bias
    expected = model(x + move.view(x.shape)).detach().flatten(1)
    torch.testing.assert_close(product, expected, atol=1e-9, rtol=1e-9)


def test_constraints_by_hand():
    """max(x, y, x + y) of y = clip(x0, -1, 1): each wall as one would write it."""
    model = Function(lambda x: torch.stack([x[:, 0].clamp(-1, 1), x[:, 1]], 1).amax(1, keepdim=True))
    region = linear_region(model, torch.tensor([[0.5, 0.75]], dtype=torch.float64))
    g, h = region.constraints
    # x0 >= -1, x0 <= 1, x0 <= x1
    assert g.to_dense().tolist() == [[-1, 0], [1, 0], [1, -1]]
    assert h.tolist() == [1, 1, 0]
    assert region.weight.tolist() == [[0, 1]]
    assert [steps.flatten().tolist() for steps in region.pattern.values()] == [[1], [1]]
    torch.testing.assert_close(region.radius, torch.tensor(0.25 / 2**0.5, dtype=torch.float64))


def dense(*sizes):
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())][:-1]
    return nn.Sequential(*layers).double().requires_grad_(False), samples(1, sizes[0])


DENSE = [(5, 8, 3), (6, 10, 7, 4)]


@pytest.mark.parametrize("sizes", DENSE)
def test_constraints_of_a_dense_network(sizes):
    """Layer after layer, as in textbooks."""
    model, x = dense(*sizes)
    a, b, walls = torch.eye(sizes[0], dtype=torch.float64), torch.zeros(sizes[0], dtype=torch.float64), []
    for layer in model[:-1:2]:
        a, b = layer.weight @ a, layer.weight @ b + layer.bias
        on = a @ x[0] + b > 0
        sign = 1 - 2 * on.double()
        walls.append(torch.cat([sign[:, None] * a, -(sign * b)[:, None]], 1))
        a, b = on[:, None] * a, on * b
    g, h = linear_region(model, x).constraints
    torch.testing.assert_close(torch.cat([g.to_dense(), h[:, None]], 1), torch.cat(walls), atol=1e-12, rtol=0)


@pytest.mark.parametrize("sizes", DENSE)
def test_constraints_are_the_half_spaces_of_relucent(sizes):
    for name in ("relucent", "gurobipy", "networkx", "plotly"):  # it needs these for a polyhedron
        pytest.importorskip(name)
    import relucent

    model, x = dense(*sizes)
    layers = [layer for layer in to_mlp(model, x) if isinstance(layer, nn.Linear)]
    network = relucent.convert([(layer.weight.numpy(), layer.bias.numpy()) for layer in layers])
    g, h = linear_region(model, x).constraints
    halfspaces = relucent.Complex(network).add_point(x).halfspaces_np
    np.testing.assert_allclose(halfspaces, np.c_[g.to_dense(), -h], atol=1e-12)


@pytest.mark.parametrize("name", ["vgg-bn", "shufflenet"])
def test_batch_is_its_points(name):
    model, x, _ = case(name)
    regions = linear_region(model, x)
    for number in range(len(x)):
        region = linear_region(model, x[number : number + 1])
        torch.testing.assert_close(regions.weight[number], region.weight, atol=1e-14, rtol=0)
        torch.testing.assert_close(regions.bias[number], region.bias, atol=1e-14, rtol=0)
        torch.testing.assert_close(regions.radius[number], region.radius, rtol=1e-12, atol=0)
        assert same({name: steps[number] for name, steps in regions.pattern.items()}, region.pattern)
    assert regions.contains(x).tolist() == [True] * 3
    assert regions.contains(x.roll(1, 0)).tolist() == [False] * 3


def test_chunks_are_the_whole(monkeypatch):
    model, x, whole = case("unet")
    expected = whole.constraints[0].to_dense(), whole.radius
    monkeypatch.setattr(local_module, "CHUNK", 50_000)
    region = linear_region(model, x[:1])
    torch.testing.assert_close(region.weight, whole.weight, atol=1e-14, rtol=0)
    torch.testing.assert_close(region.constraints[0].to_dense(), expected[0], atol=1e-14, rtol=0)
    torch.testing.assert_close(region.radius, expected[1], rtol=1e-12, atol=0)


def test_many_samples_are_compared_some_at_a_time(monkeypatch):
    _, x, region = case("unet")
    many = torch.cat([x[:1] + scale * x[1:2] for scale in torch.linspace(0, 1, 50)])
    expected, counts, forward = region.contains(many), [], LocalMap.forward

    def counted(self, x, *options):
        counts.append(x.shape[1])
        return forward(self, x, *options)

    monkeypatch.setattr(LocalMap, "forward", counted)
    monkeypatch.setattr(local_module, "CHUNK", 50_000)
    assert torch.equal(region.contains(many), expected)
    assert expected[0]
    assert not expected.all()
    assert len(counts) > 1
    assert sum(counts) == 50
    assert max(counts) * region._local.walls.shape[2] <= 50_000


@pytest.mark.parametrize("name", long_but(["resnet"], ["resnet", "vgg-bn", "mobilenet", "unet", "inception"]))
def test_radius_needs_few_rows(name, monkeypatch):
    """From random directions, and the rows of the nearest walls, as from all rows."""
    model, x, _ = case(name)
    expected = linear_region(model, x).radius
    monkeypatch.setattr(nearest, "DIRECTIONS", 20)
    monkeypatch.setattr(nearest, "FACTOR", 0.01)  # with so few: 1e-16 for a wall
    monkeypatch.setattr(nearest, "_exactly", lambda local: pytest.fail("all rows"))
    torch.testing.assert_close(linear_region(model, x).radius, expected, rtol=1e-12, atol=0)
    for number in range(len(x)):
        radius = linear_region(model, x[number : number + 1]).radius
        torch.testing.assert_close(radius, expected[number], rtol=1e-12, atol=0)


def test_rows_of_walls_are_those_of_the_constraints():
    for name in ("mobilenet", "unet"):
        _, _, region = case(name)
        local = region._local
        numbers = np.flatnonzero(local.is_wall[0])[:: max(1, local.is_wall.sum() // 50)]
        rows = local.wall_rows(numbers[None])[0]
        kept = np.searchsorted(np.flatnonzero(local.is_wall[0]), numbers)
        np.testing.assert_allclose(rows, region.constraints[0].to_dense()[kept], atol=1e-13)


def test_many_walls_that_are_as_near(monkeypatch):
    """The walls of a ReLU on each element of equal elements: all rows are computed."""
    model = nn.Sequential(nn.Flatten(), nn.ReLU())
    x = torch.full((1, 1100), 0.25, dtype=torch.float64)
    monkeypatch.setattr(nearest, "DIRECTIONS", 20)
    monkeypatch.setattr(nearest, "FACTOR", 0.01)
    assert linear_region(model, x).radius == 0.25


def test_elements_that_do_not_bend_are_not_near(monkeypatch):
    model = nn.PReLU(60).double()
    with torch.no_grad():
        model.weight.fill_(1)[[3, 5, 8]] = 0.2
    x = torch.full((1, 60), 0.001, dtype=torch.float64)
    x[0, [3, 5, 8]] = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    assert linear_region(model, x).radius == 0.5
    monkeypatch.setattr(nearest, "DIRECTIONS", 20)
    monkeypatch.setattr(nearest, "FACTOR", 0.01)
    assert linear_region(model, x).radius == 0.5


@pytest.mark.parametrize("scale", [1e-200, 1e-20, 1e200])
@pytest.mark.parametrize("inputs", [3, 600])
def test_radius_does_not_depend_on_the_scale_of_walls(inputs, scale):
    """The squares of their rows have no float64."""
    layer = nn.Linear(inputs, 4).double()
    x = samples(1, inputs)
    expected = linear_region(nn.Sequential(layer, nn.ReLU()), x).radius
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(scale)
    torch.testing.assert_close(linear_region(nn.Sequential(layer, nn.ReLU()), x).radius, expected)


@pytest.mark.parametrize("count", [1, 3])
def test_an_output_that_is_a_number(count):
    model, x = Function(lambda x: torch.relu(x).sum(1)), samples(count, 4)
    region = linear_region(model, x)
    torch.testing.assert_close((region.weight @ x[:, :, None])[..., 0] + region.bias, model(x)[:, None])


def test_an_output_that_is_not_batch_first_is_named():
    with pytest.raises(ValueError, match=r"output 1 must have one row per sample, batch first, .* permute it"):
        linear_region(nn.RNN(3, 4, nonlinearity="relu", batch_first=True).double(), samples(1, 5, 3))


def test_steps_at_walls_are_ties():
    model = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(3, 2, bias=False)).double()
    region = linear_region(model, torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64))
    assert {name: tied.tolist() for name, tied in region.ties.items()} == {"0": [False, True, False]}
    assert region.pattern["0"].tolist() == [1, 0, 0]  # at 0 it is off
    assert region.radius == 0
    assert not region.radius.signbit()
    assert torch.equal(region.weight, model[2].weight * torch.tensor([1.0, 0.0, 0.0]))


def test_equal_elements_of_a_window_are_ties_unless_nothing_moves_them():
    pool = nn.Sequential(nn.ReLU(), nn.MaxPool1d(2))
    tied = linear_region(pool, torch.tensor([[[3.0, 3.0, 1.0, 2.0]]]))
    assert {name: x.tolist() for name, x in tied.ties.items()} == {"1": [[True, False]]}
    assert tied.weight.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]  # the first of them
    dead = linear_region(pool, torch.tensor([[[-1.0, -3.0, 1.0, 2.0]]]))
    assert not dead.ties
    assert dead.radius == pytest.approx(1 / 2**0.5)  # from 1 to 2


def test_equal_functions_have_no_wall():
    model = Function(lambda x: torch.maximum(x.mean(1, keepdim=True), x.sum(1, keepdim=True) / 3))
    region = linear_region(model, samples(1, 3))
    assert (region.ties, region.radius) == ({}, torch.inf)


def test_several_inputs_and_outputs():
    class Pair(nn.Module):
        def forward(self, a, b):
            return torch.relu(a), {"sum": a.flatten(1) + b, "same": b}

    a, b = samples(1, 2, 3), samples(1, 6)
    region = linear_region(Pair(), (a, b))
    assert region.input_slices == (slice(0, 6), slice(6, 12))
    assert region.weight.shape == (18, 12)
    identity = torch.eye(6, dtype=torch.float64)
    total, same = (region.weight[part] for part in region.output_slices[1:])
    assert torch.equal(total, torch.cat([identity, identity], 1))
    assert torch.equal(same, torch.cat([0 * identity, identity], 1))
    assert region.contains((a, b)).tolist() == [True]
    assert region.contains((-a, b)).tolist() == [False]


def test_affine_model_has_no_walls():
    x = samples(2, 3, 5, 5)
    model = build(lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)))
    region = linear_region(model, x)
    assert region.radius.tolist() == [torch.inf] * 2
    single = linear_region(model, x[:1])
    assert single.constraints[0].shape == (0, 75)
    torch.testing.assert_close(single.weight, jacobian(model, x[0]), atol=1e-14, rtol=0)
    assert single.contains(1e6 * x).all()


def test_unused_constant_and_passed_values():
    """Outputs that are inputs, or constants, and steps of constants."""
    model = Function(lambda x: torch.cat([x, torch.relu(x - x), torch.ones_like(x)], 1))
    region = linear_region(model, samples(1, 2))
    assert region.weight.tolist() == [[1, 0], [0, 1], *[[0, 0]] * 4]
    assert region.bias.tolist() == [0, 0, 0, 0, 1, 1]
    assert region.radius == torch.inf


def test_float32_is_computed_in_float64_and_rounded_once():
    model, x = family("vgg-bn")
    exact = linear_region(model, x[:1].float().double())
    rounded = linear_region(model.float(), x[:1].float())
    assert rounded.weight.dtype is rounded.constraints[0].dtype is torch.float32
    torch.testing.assert_close(rounded.weight.double(), exact.weight, rtol=1e-6, atol=1e-7)
    assert linear_region(model, x[:1].float(), dtype=torch.float64).weight.dtype is torch.float64


def test_whole_numbers_are_taken_as_floating():
    images = torch.randint(0, 256, (1, 1, 4, 4), dtype=torch.uint8)
    model = nn.Sequential(Function(lambda x: x.double() / 255), nn.Conv2d(1, 2, 3).double(), nn.ReLU())
    region = linear_region(model, images)
    torch.testing.assert_close(
        region.weight @ images.double().flatten() + region.bias, model(images).detach().flatten()
    )


def test_later_changes_of_the_model_do_not_reach_it():
    model, x = family("mobilenet")
    region, other = linear_region(model, x[:1]), linear_region(model, x[:1])
    expected = region.radius
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-2)
    assert torch.equal(other.radius, expected)


def test_sparse_weight():
    model, x, region = case("densenet")
    sparse = linear_region(model, x[:1], layout="sparse").weight
    assert sparse.layout is torch.sparse_csr
    assert torch.equal(sparse.to_dense(), region.weight)


@each_case
def test_memory_bound_holds(name):
    """The bound is one, and where nothing cancels or is off it is not far off."""
    _, _, region = case(name)
    bounds = region._local.entries()
    counts = [int((matrix.to_dense() != 0).sum()) for matrix in (region.weight, region.constraints[0])]
    assert counts[0] <= bounds[0]
    assert counts[1] <= bounds[1]


def test_it_is_public():
    assert repr(linear_region(nn.ReLU(), torch.ones(1, 2))) == "LinearRegion(2 outputs, 2 inputs, 1 steps, 2 walls)"
    assert conv2affine.LinearRegion.__name__ == "LinearRegion"
