"""Shared by the tests: which are long, fixtures, seeded random numbers, the comparison of bits, and memory."""

import functools
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from tests.network.models import MODEL, SHAPE, build, samples


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items):
    """Mark as long what is off the diagonal of a test with the mark `diagonal`."""
    products = defaultdict(list)
    for item in items:
        if item.get_closest_marker("diagonal"):
            products[item.nodeid.partition("[")[0]].append(item)
    for product in products.values():
        axes = [mark.args[0] for mark in product[0].iter_markers("parametrize")]
        axes = [names.split(", ") if isinstance(names, str) else names for names in axes]
        # Their values by identity: few of them are numbers or words.
        points = [[tuple(id(item.callspec.params[name]) for name in names) for names in axes] for item in product]
        values = [list(dict.fromkeys(axis)) for axis in zip(*points, strict=True)]
        diagonal = [[axis[n % len(axis)] for axis in values] for n in range(max(map(len, values)))]
        for item, point in zip(product, points, strict=True):
            if point not in diagonal:
                item.add_marker(pytest.mark.long)


def long_but(kept, cases):
    """Cases as parameters, all of them long but some."""
    return [case if case in kept else pytest.param(case, marks=pytest.mark.long) for case in cases]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model():
    """A small residual network, in evaluation mode."""
    return build(MODEL)


@pytest.fixture
def x():
    """Four samples for `model`."""
    return samples(4, *SHAPE)


@pytest.fixture
def break_row(monkeypatch):
    """A function that puts one row of the last layer, which has six, off by 1 %, in modules that make layers."""

    def break_row(row, *modules):
        for module in modules:
            name = "finite_layer" if hasattr(module, "finite_layer") else "layer"
            monkeypatch.setattr(module, name, functools.partial(_broken, getattr(module, name), row))

    return break_row


def _broken(layer, row, *args):
    made = layer(*args)
    if made.out_features == 6:
        made.weight[row] *= 1.01
    return made


def random(*size, dtype=torch.float32):
    return torch.randn(*size, dtype=dtype, generator=torch.Generator().manual_seed(0))


def status(name):
    """Bytes, from what Linux reports about this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def assert_same_bits(actual, expected, message=None):
    """Equal bit by bit: for torch.equal, -0.0 equals 0.0, and NaN equals nothing."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), message
    assert torch.equal(actual.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)), message


def peak_bytes(setup, expression):
    """Bytes that a fresh process grows by, at the peak, while it computes an expression."""
    code = f"""
import psutil, torch
from conv2affine import *
torch.set_num_threads(1)
{setup}
open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here
before = psutil.Process().memory_info().rss
result = {expression}
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(1024 * int(peak.split()[1]) - before)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
