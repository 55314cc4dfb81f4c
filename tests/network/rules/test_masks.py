"""ReLUs written by hand, with comparisons, signs and masks, on both sides; what jumps is kept."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conv2affine import to_linear, to_linear_network, to_mlp
from conv2affine.network.rules.piecewise import Piecewise
from conv2affine.onnx import convert
from tests.conftest import long_but
from tests.network.models import Function, samples
from tests.onnx.models import difference, inputs, model, operators, random

THETA = torch.tensor([[0.1], [0.2], [0.0]], dtype=torch.float64)  # for each channel


def written(h, value):
    h = h.clone()
    h[h < 0] = value
    return h


# The function, and how many ReLUs an element becomes.
CONTINUOUS = {
    "times-mask": (lambda h: h * (h > 0), 1),
    "times-mask-with-0": (lambda h: (h >= 0) * h, 1),
    "times-mask-as-number": (lambda h: h * (h > 0).to(h), 1),
    "times-mask-as-whole-number": (lambda h: h * (h > 0).int(), 1),
    "times-sums-of-whole-masks": (
        lambda h: h * (1 - (h < 0).long()) + 0.1 * h * ((h < 0).int() + (h == 0).int()),
        None,
    ),
    "times-mask-as-byte": (lambda h: h * (h > 0).byte(), 1),
    "where-far": (lambda h: torch.where(h > 1e6, 2 * h - 1e6, h), 3),
    "where-far-below": (lambda h: torch.where(h < -1e9, -1e9, h), 3),
    "where-far-and-near": (lambda h: torch.where(h > 1e6, 1e6, torch.where(h > 0.5, h, 0.5)), 4),
    "times-scaled-mask": (lambda h: h * (0.5 * (h > 0).to(h)), 1),
    "copysign": (lambda h: torch.copysign(F.relu(h.abs() - 0.1), h), None),
    "times-opposite-mask": (lambda h: h * ~(h < 0), 1),
    "times-1-minus-mask": (lambda h: h * (1 - (h < 0).to(h)), 1),
    "times-both-masks": (lambda h: (h > 0) * h + (h <= 0) * h * 0.1, 2),
    "plus-times-mask": (lambda h: torch.addcmul(h, h, (h > 0).to(h)), 3),
    "times-heaviside": (lambda h: h * torch.heaviside(h, torch.tensor(0.5, dtype=h.dtype)), 1),
    "where": (lambda h: torch.where(h > 0, h, 0.1 * h), 2),
    "where-zero": (lambda h: torch.where(h > 0, h, 0.0), 1),
    "where-channels": (lambda h: torch.where(h > 0, h, THETA * h), 2),
    "where-threshold": (lambda h: torch.where(h < 0.7, 0.7, h), 1),
    "where-affine": (lambda h: torch.where(2 * h - 1 > 0.4, 3 * h, h + 1.4), 2),
    "where-steps": (lambda h: torch.where(h > 0, h.clamp(max=2), F.leaky_relu(h, 0.3)), 3),
    "where-nested": (lambda h: torch.where(h > 1, h - 1, torch.where(h < -1, h + 1, 0.0)), 2),
    "where-both": (lambda h: torch.where((h > -1) & (h < 2), h, h.clamp(-1, 2)), 2),
    "where-either": (lambda h: torch.where((h < -1) | (h > 1), h.sign(), h), 2),
    "where-not": (lambda h: torch.where(torch.logical_not(h > 0), -h, h), 2),
    "where-xor": (lambda h: torch.where((h > -1) ^ (h > 1), 1 - h.abs(), 0.0), 4),
    "where-tent": (lambda h: torch.where(h.abs() < 1, 1 - h.abs(), 0.0), 4),
    "larger-of-two": (lambda h: torch.where(h > h.flip(1), h, h.flip(1)), 3),
    "larger-after-a-step": (lambda h: (lambda r: torch.where(r > h.flip(1), r, h.flip(1)))(F.relu(h)), None),
    "beside-a-sum": (lambda h: h.flip(2) + torch.where(h > 0, h, 0.0), 3),
    "written-twice": (lambda h: (h.cumsum(1) > 0) * h.cumsum(1), 1),
    "moved-mask": (lambda h: h * (h.flip(1) > 0).to(h).flip(1), 1),
    "masked-fill": (lambda h: h.masked_fill(h < 0, 0), 1),
    "written": (lambda h: written(h, 0), 1),
    "sign-times-absolute-value": (lambda h: h.sign() * h.abs(), 0),
    "sign-times-value": (lambda h: h.sign() * h, 2),
    "soft-threshold": (lambda h: h.sign() * F.relu(h.abs() - THETA), 3),
    "softshrink": (lambda h: F.softshrink(h, 0.3), 2),
    "rrelu": (nn.RReLU(), 2),
    "threshold": (lambda h: F.threshold(h, 0.2, 0.2), 1),
    "lp-pool": (nn.LPPool1d(1, 2), 0),
    "clamp-minimum": (lambda h: h.clamp(min=0), 1),
    "jumps-that-cancel": (lambda h: (h > 0).to(h) * (h + 1) + (1 - (h > 0).to(h)), 1),
    "jump-of-a-mask": (lambda h: torch.where(h > 1, h, 0.0) - (h > 1).to(h), 1),
    "jumps-of-three": (lambda h: (h + 2) * (h >= 0.5) - (h >= 0.5).to(h) - 1.5 * (h >= 0.5).to(h), 1),
    "jumps-of-two-bases": (
        lambda h: torch.where(h > 1, h, 0.0) + h.flip(1) * (h.flip(1) < 0) - (h > 1).to(h) + h.flip(1).sign() * 0,
        None,
    ),
    "not-a-number": (lambda h: torch.nan_to_num(torch.where(h > 0, h, 0.1 * h)), 2),
    "jump-moved": (lambda h: (torch.where(h > 1, h, 0.0) * 2).flip(2) - 2 * (h.flip(2) > 1).to(h) + 3, 1),
}


@pytest.mark.parametrize(("function", "relus"), CONTINUOUS.values(), ids=CONTINUOUS)
def test_continuous(function, relus):
    made, x = nn.Sequential(nn.Conv1d(2, 3, 3), Function(function)).double().eval(), 2 * samples(5, 2, 10)
    x[0] = 0.0
    mlp = to_mlp(made, x)
    torch.testing.assert_close(mlp(x), made(x).flatten(1), atol=1e-12, rtol=0)
    if relus is not None:
        assert sum(layer.out_features for layer in mlp[1:-1] if isinstance(layer, nn.Linear)) == relus * 24


@pytest.mark.parametrize("name", long_but(("times-mask", "where", "clamp-minimum"), CONTINUOUS))
def test_continuous_in_a_network(name):
    made, x = nn.Sequential(nn.Conv1d(2, 3, 3), Function(CONTINUOUS[name][0])).double().eval(), 2 * samples(5, 2, 10)
    x[0] = 0.0
    net = to_linear_network(made, x)
    assert not net.plan.kept
    torch.testing.assert_close(net(x), made(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("function", [lambda h: h.sign() * h.abs(), nn.LPPool1d(1, 2)], ids=["sign", "lp-pool"])
def test_what_is_affine_after_all_is_one_layer(function):
    x = samples(5, 2, 10)
    made = Function(function)
    torch.testing.assert_close(to_linear(made, x)(x.flatten(1)), made(x).flatten(1), atol=1e-12, rtol=0)


FAR = {
    "above": lambda h: torch.where(h > 1e6, 2 * h - 1e6, h),
    "below": lambda h: torch.where(h < -1e12, -1e12, h),
    "both": lambda h: torch.where(h > 1e8, 1e8, torch.where(h < -1e6, -1e6, h)),
    "softshrink": lambda h: F.softshrink(h, 1e7),
    "maximum": lambda h: torch.maximum(-1e8 * F.relu(h) - 1, h),
    "minimum": lambda h: torch.minimum(h, 1e8 * F.relu(h) + 1),
}


@pytest.mark.parametrize("function", FAR.values(), ids=FAR)
def test_far_bends_leave_the_digits_of_float32(function):
    made, x = Function(function), samples(50, 2, 3, dtype=torch.float32)
    for converted in (to_linear_network(made, x), to_mlp(made, x)):
        torch.testing.assert_close(converted(x).view_as(x), made(x), atol=1e-6, rtol=0)


JUMPS = {
    "times-mask": (lambda h: h * (h > 0.5), "mul must be .* it jumps by 0.5 at 0.5"),
    "where": (lambda h: torch.where(h > 0, h + 1, h), "where must be .* it jumps by 1 at 0"),
    "on-the-threshold": (lambda h: torch.where(h == 0, 5.0, h), "where must be .* it jumps by 5 at 0"),
    "one-channel": (lambda h: torch.where(h > THETA, h - THETA.flip(0), 0.0), "it jumps by 0.1 at 0"),
    "hardshrink": (F.hardshrink, "where must be .* it jumps by 0.5 at -0.5"),
    "threshold": (lambda h: F.threshold(h, 0.2, 0.0), "threshold must be .* it jumps by 0.2 at 0.2"),
    "written": (lambda h: written(h, 3), "where must be .* it jumps by 3 at 0"),
    "of-another-value": (lambda h: h * (h.flip(1) > 0), "mul must be .* it multiplies values"),
    "square": (lambda h: h * h * (h > 0), "mul must be .* it multiplies values"),
    "times-whole-part": (lambda h: h * h.int(), "mul must be .* it multiplies values"),
    "far": (lambda h: torch.where(h > 1e6, h + 1, h), "where must be .* it jumps by 1 at 1e[+]06"),
    "sum": (lambda h: torch.where(h > 0, h + 1, h) - 0.5 * (h > 0).to(h), "where must be .* it jumps by 1 at 0"),
    "to-minus-infinity": (
        lambda h: torch.where(h > 0, h, -torch.inf).exp(),
        "where must be affine or piecewise linear",
    ),
    "sum-of-two": (
        lambda h: torch.where(h > 0, 1.0, h) - (h > 0).to(h) + torch.where(h < 1, h, 3.0),
        "where must be .* it jumps by 2 at 1",
    ),
}


@pytest.mark.parametrize("scale", [1, 1e15])
def test_a_mask_of_another_element_is_none_next_to_a_large_one(scale):
    numbers = torch.tensor([scale, 1.0, 1.0], dtype=torch.float64)
    net = Function(lambda h: (lambda h: h[..., [0, 2, 1]] * (h > 0))(h * numbers))
    with pytest.raises(NotImplementedError, match=r"mul must be .* it multiplies values"):
        to_mlp(net, samples(5, 3))


@pytest.mark.parametrize(("function", "message"), JUMPS.values(), ids=JUMPS)
def test_jumps(function, message):
    made, x = Function(function), samples(5, 3, 4)
    net = to_linear_network(made, x)
    assert net.plan.kept
    torch.testing.assert_close(net(x), made(x), atol=1e-12, rtol=0)
    with pytest.raises(NotImplementedError, match=message):
        to_mlp(made, x)


FILES = {
    "where": ("m = Greater(h, z)\ns = Mul(h, n)\ny = Where(m, h, s)", 13),
    "mask-as-number": ("l = Less(h, z)\nm = Not(l)\nf = Cast<to = 1>(m)\ny = Mul(h, f)", 13),
    "greater-or-equal": ("m = GreaterOrEqual(h, z)\ny = Where(m, h, z)", 16),
    "greater-or-equal-opset-12": ("m = GreaterOrEqual(h, z)\ny = Where(m, h, z)", 12),
    "less-or-equal-opset-15": ("m = LessOrEqual(h, z)\ny = Where(m, z, h)", 15),
    "both": ("a = Greater(h, z)\nb = Less(h, six)\nm = And(a, b)\nc = Clip(h, z, six)\ny = Where(m, h, c)", 13),
    "soft-threshold": ("s = Sign(h)\na = Abs(h)\nb = Sub(a, t)\nr = Relu(b)\ny = Mul(s, r)", 13),
    "larger-of-two": ("g = Neg(h)\nm = Greater(h, g)\ny = Where(m, h, g)", 13),
    "written-twice": ("a = MatMul(h, q)\nm = Greater(a, z)\nb = MatMul(h, q)\ny = Where(m, b, z)", 13),
    "shrink": ("y = Shrink<lambd = 0.3, bias = 0.3>(h)", 13),
    "thresholded-relu": ("y = ThresholdedRelu<alpha = 0.0>(h)", 13),
    "not-a-number": ("m = IsNaN(h)\na = Where(m, z, h)\ny = Relu(a)", 13),
    "infinities-replaced": (
        "m = IsInf<detect_positive = 0>(h)\nl = Less(h, z)\nb = And(m, l)\na = Where(b, t, h)\ny = Relu(a)",
        13,
    ),
    "jumps-that-cancel": (
        "m = Greater(h, t)\nf = Cast<to = 1>(m)\na = Where(m, h, z)\nb = Mul(f, t)\ny = Sub(a, b)",
        13,
    ),
}
NUMBERS = {"w": random(3, 4), "z": np.float32(0), "t": np.float32(0.3), "n": np.float32(0.1), "six": np.float32(6)}
NUMBERS |= {"q": random(4, 4), "large": np.float32(3e38), "two": np.array([2]), "v": random(2, 3)}


def file(nodes, opset=13):
    return model(f"h = MatMul(x, w)\n{nodes}", {"x": ("N", 3)}, NUMBERS, opset=opset)


@pytest.mark.parametrize(("nodes", "opset"), FILES.values(), ids=FILES)
def test_file(nodes, opset):
    original = file(nodes, opset)
    for form in ("graph", "mlp"):
        result = convert(original, form=form)
        assert not result.kept
        assert difference(original, result.model, inputs(result.model, 4)) <= 1e-6
    assert operators(result.model) == ["Gemm", "Relu", "Gemm"]


UNSURE = {
    "not-a-number": ("l = Log(h)\nm = IsNaN(l)\ny = Where(m, z, l)", "y"),
    "infinities": ("r = Relu(h)\nl = Log(r)\ns = Mul(l, t)\nm = IsInf(s)\ny = Where(m, z, s)", "y"),
    "overflow": ("s = Mul(h, large)\nm = IsInf(s)\ny = Where(m, z, h)", "y"),
    "result": ("y = IsNaN(h)", "y"),
    "order-of-infinities": ("r = Relu(h)\nl = Log(r)\na, i = TopK(l, two)\ny = MatMul(a, v)", "a"),
}


@pytest.mark.parametrize(("nodes", "kept"), UNSURE.values(), ids=UNSURE)
def test_what_may_be_infinite_or_no_number_is_kept_in_a_file(nodes, kept):
    original = file(nodes)
    result = convert(original)
    assert kept in result.kept
    assert difference(original, result.model, inputs(result.model, 40)) <= 1e-6


FILE_JUMPS = {
    "where": ("m = Greater(h, t)\ny = Where(m, h, z)", "y: Where must be .* it jumps by 0.3 at 0.3"),
    "shrink": ("y = Shrink<lambd = 0.3, bias = 0.1>(h)", "y: Shrink must be .* it jumps by 0.2 at -0.3"),
    "thresholded-relu": ("y = ThresholdedRelu(h)", "y: ThresholdedRelu must be .* it jumps by 1 at 1"),
}


@pytest.mark.parametrize(("nodes", "message"), FILE_JUMPS.values(), ids=FILE_JUMPS)
def test_file_jumps(nodes, message):
    original = file(nodes)
    result = convert(original)
    assert "y" in result.kept
    assert difference(original, result.model, inputs(result.model, 4)) <= 1e-6
    with pytest.raises(NotImplementedError, match=message):
        convert(original, form="mlp")


def evaluate(function, x):
    """The values of a function of one element."""
    numbers = (function.knots[:, 0, None] < x).sum(0)
    return function.slopes[numbers, 0] * x + function.offsets[numbers, 0]


@pytest.mark.parametrize("seed", range(5))
def test_functions(seed):
    """Sums, products with signs and absolute values, against NumPy, between and beyond the knots."""
    slopes, offsets = np.random.default_rng(seed).normal(size=(2, 4))
    x = np.linspace(-5, 5, 201)
    lines = [Piecewise.line(a, b) for a, b in zip(slopes, offsets, strict=True)]
    numbers = [a * x + b for a, b in zip(slopes, offsets, strict=True)]
    function, expected = lines[0], numbers[0]
    for line, number in zip(lines[1:], numbers[1:], strict=True):
        function, expected = function * function.signs() + line, abs(expected) + number
    np.testing.assert_allclose(evaluate(function, x), expected, atol=1e-12)
    assert not function.jumps().any()
    np.testing.assert_allclose(evaluate(function.signs(), x), np.sign(expected))
