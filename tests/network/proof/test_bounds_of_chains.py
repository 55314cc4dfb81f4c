"""Chains for a box: their bounds hold in floating point, and what the box leaves of them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from conv2affine import check, to_mlp
from tests.network.random_networks import PIECEWISE, Network, example_input, networks

FLOATS = (torch.float32, torch.float64)


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


def test_bounds_of_a_pair_that_is_carried_on_are_those_of_its_relus():
    class Skip(nn.Module):
        def forward(self, x):
            return torch.relu(torch.relu(x.flip(1) - 0.5) - 0.1) + x

    x = torch.tensor([[0.6, -0.4]])
    mlp = to_mlp(Skip(), x, box=around(x, 0.7))
    (low, high), (carried_low, carried_high) = mlp.bounds[0], mlp.bounds[1]
    assert (low[:4] < 0).all()  # x and -x, the rows of the pair
    assert carried_low[1:].tolist() == [0] * 4
    assert torch.equal(carried_high[1:], high[:4])


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


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated")
def test_torchscript_runs_a_chain():
    mlp, x = to_mlp(net(nn.Linear(2, 2), nn.ReLU()), torch.rand(1, 2), box=(0, 1)), torch.rand(3, 2)
    assert torch.equal(torch.jit.script(mlp)(x), mlp(x))


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
