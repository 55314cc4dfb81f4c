"""Mutated ONNX files, in subprocesses, which may crash: each gives a right result or a clear error."""

import re
import subprocess
import sys
from collections import Counter

BATCH = 250


def fuzz(seed: int, size: int) -> str:
    """Convert `size` mutants."""
    outcomes: Counter[str] = Counter()
    for first in range(seed, seed + size, BATCH):
        count = min(BATCH, seed + size - first)
        # It gives up a mutant by itself, unless that hangs outside of Python.
        done = subprocess.run(
            [sys.executable, "-m", "tests.onnx.mutations", str(count), str(first)],
            capture_output=True,
            text=True,
            timeout=20 * count,
        )
        last = done.stdout.rstrip().rpartition("\n")[2]
        assert done.returncode == 0, f"status {done.returncode}, mutant of seed {last}:\n{done.stderr[-2000:]}"
        outcomes.update({name: int(number) for name, number in re.findall(r"'(\w+)': (\d+)", last)})
    return ", ".join(f"{number:,} {name}" for name, number in outcomes.most_common())
