"""Small files that ask for much: each is converted or refused within 20 s and 1.5 GB, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from onnx_hostile import CASES

ROOT = Path(__file__).resolve().parents[1]
MAX_SECONDS, MAX_BYTES = 20, 1.5e9


@pytest.mark.long
@pytest.mark.serial
@pytest.mark.parametrize("form", ["graph", "mlp"])
@pytest.mark.parametrize("name", CASES)
def test_takes_little(name, form):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    result = subprocess.run(
        [sys.executable, ROOT / "tests" / "onnx_hostile.py", name, form],
        capture_output=True,
        text=True,
        timeout=10 * MAX_SECONDS,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert not result.returncode, result.stderr
    seconds, peak, became = result.stdout.split(" ", 2)
    assert float(seconds) <= MAX_SECONDS, became
    assert int(peak) <= MAX_BYTES, became
