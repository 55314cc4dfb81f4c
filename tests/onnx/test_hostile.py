"""Small files that ask for much: each is converted or refused within 20 s of processor time and 1.5 GB."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.onnx.hostile import CASES

ROOT = Path(__file__).resolve().parents[2]
MAX_SECONDS, MAX_BYTES = 20, 1.5e9


@pytest.mark.long
@pytest.mark.serial
@pytest.mark.parametrize(("name", "form"), [(name, form) for name in CASES for form in ("graph", "mlp")])
def test_takes_little(name, form):
    result = subprocess.run(
        [sys.executable, "-m", "tests.onnx.hostile", name, form],
        capture_output=True,
        text=True,
        timeout=3 * MAX_SECONDS,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert not result.returncode, result.stderr
    seconds, peak, became = result.stdout.split(" ", 2)
    assert float(seconds) <= MAX_SECONDS, became
    assert int(peak) <= MAX_BYTES, became


LARGE = """
import resource, sys
from tests.onnx.models import model, random
from conv2affine.onnx import convert
conv = "Conv<pads = [1, 1, 1, 1]>"
nodes = f"v = {conv}(x, w)\\nr = Relu(v)\\nu = {conv}(r, w)\\ns = Relu(u)\\ny = {conv}(s, w)"
proto = model(nodes, {"x": ("N", 8, 32, 32)}, {"w": random(8, 8, 3, 3)})
convert(model("y = Gemm(x, w)", {"x": ("N", 2)}, {"w": random(2, 2)}))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(proto, sys.argv[1])
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.long
@pytest.mark.serial
def test_large_layers_are_written_and_checked_one_at_a_time(tmp_path):
    """Three layers of 256 MiB; what is mapped counts, too."""
    result = subprocess.run(
        [sys.executable, "-c", LARGE, tmp_path / "large.onnx"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert not result.returncode, result.stderr
    assert (tmp_path / "large.onnx.data").stat().st_size >= 3 * 2**28
    assert int(result.stdout) <= 1.3 * 2**28
