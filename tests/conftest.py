"""What all tests share: seeded random numbers, the comparison of tensors bit by bit, and peaks of memory."""

import subprocess
import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def assert_same_bits(actual, expected):
    """Equal bit by bit: for torch.equal, -0.0 equals 0.0, and NaN equals nothing."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert torch.equal(actual.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


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
