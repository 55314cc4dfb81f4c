"""Every pool, pad and resize that PyTorch runs on short axes, many in one network; make test runs a sample of them."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conv2affine import to_linear_network
from tests.network.models import Function, samples

SIZES, PARTS = range(1, 7), 24
FLAGS = (False, True)
CASES = [
    pytest.param(kind, size, part, marks=() if size == part and (size == 5 or kind == "pools") else pytest.mark.long)
    for kind, size, part in itertools.product(("pools", "adaptive", "pads", "resizes"), SIZES, range(PARTS))
]


def pools(axes):
    """Along the last axis; the others have size 1 and 2."""
    average, largest = (getattr(F, f"{kind}_pool{axes}d") for kind in ("avg", "max"))
    for kernel, stride, padding, dilation, ceil in itertools.product(
        range(1, 5), (1, 2, 3), range(3), (1, 2, 3), FLAGS
    ):
        last = (kernel, stride, padding)
        sizes = {
            name: (other,) * (axes - 1) + (size,) for name, other, size in zip(NAMES, (1, 1, 0), last, strict=True)
        }
        yield partial(largest, **sizes, dilation=(1,) * (axes - 1) + (dilation,), ceil_mode=ceil)
        if dilation == 1:
            yield from (partial(average, **sizes, ceil_mode=ceil, count_include_pad=counted) for counted in FLAGS)
            if axes > 1:
                yield partial(average, **sizes, ceil_mode=ceil, divisor_override=3)


NAMES = ("kernel_size", "stride", "padding")


def adaptive(axes):
    for size in range(1, 8):
        output = (1,) * (axes - 1) + (size,)
        yield from (partial(getattr(F, f"adaptive_{kind}_pool{axes}d"), output_size=output) for kind in ("avg", "max"))


def pads(axes):
    for sides in itertools.product(range(-2, 5), repeat=2):
        more = (0, 1) * (axes - 1)
        for mode in ("reflect", "replicate", "circular"):
            if mode != "circular" or min(sides) >= 0:  # else PyTorch leaves elements without a value
                yield partial(F.pad, pad=(*sides, *more), mode=mode)
        yield partial(F.pad, pad=sides, value=0.5)


def resizes(axes):
    linear, cubic = {1: "linear", 2: "bilinear", 3: "trilinear"}[axes], ["bicubic"] * (axes == 2)
    for size in range(1, 8):
        output = (2,) * (axes - 1) + (size,)
        yield from (partial(F.interpolate, size=output, mode=mode) for mode in ("nearest", "nearest-exact", "area"))
        for mode, corners in itertools.product((linear, *cubic), FLAGS):
            yield partial(F.interpolate, size=output, mode=mode, align_corners=corners)
            if axes == 2:
                yield partial(F.interpolate, size=output, mode=mode, align_corners=corners, antialias=True)
    for factor, mode in itertools.product((0.4, 0.6, 1.3, 1.7, 2.5), (linear, *cubic)):
        yield partial(F.interpolate, scale_factor=factor, mode=mode)
        yield partial(F.interpolate, scale_factor=factor, mode=mode, recompute_scale_factor=True)


def takes(function, x):
    """Whether PyTorch gives numbers, and none of windows without elements."""
    try:
        result = function(x)
        return bool(result.numel() and result.isfinite().all())
    except (RuntimeError, ValueError, NotImplementedError):
        return False


@pytest.mark.parametrize(("kind", "size", "part"), CASES)
def test_every_small_one(kind, size, part):
    """Of inputs for even parts, of the outputs of a convolution for odd ones."""
    for axes in (1, 2, 3):
        x = samples(2, 2, *(1, 2)[: axes - 1], size)
        found = [function for function in globals()[kind](axes) if takes(function, x)][part::PARTS]
        if not found:
            continue
        before = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](2, 2, 1).double() if part % 2 else nn.Identity()
        model = nn.Sequential(before, Function(lambda x, found=found: tuple(function(x) for function in found)))
        net = to_linear_network(model, x)
        assert not any(row.kind.startswith("kept: ") for row in net.plan.kept)
        for function, result, expected in zip(found, net(x), model(x), strict=True):
            torch.testing.assert_close(result, expected, atol=1e-12, rtol=0, msg=str(function))
