"""A hundred mutated files; `make mutations` checks a thousand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_mutations():
    script = Path(__file__).with_name("onnx_mutations.py")
    # In a process of its own, which may crash.
    done = subprocess.run([sys.executable, script, "100"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-1000:]
    assert "converted" in done.stdout.splitlines()[-1]
