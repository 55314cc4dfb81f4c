"""Calls of the compiled operators with arguments of which a few are wrong, in subprocesses that are watched.

An operator must give a result whose indices lie inside its matrix, or raise a Python exception. It must not crash,
hang, lose memory, or show a C++ trace. `python -m tests.siege.nonsense SEED` repeats one call and shows its arguments.
"""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

BATCH = 2_500  # calls in one subprocess
MOST_SECONDS = 60  # of one call
MOST_LOST_BYTES = 100e6  # of one subprocess, between its first and its last hundred calls

CALLS = "from tests.siege import calls; calls.run({first}, {count}, {progress!r})"


def attack(seed: int, size: int) -> str:
    """Make `size` calls."""
    outcomes: Counter[str] = Counter()
    for first in range(seed, seed + size, BATCH):
        outcomes.update(run_batch(first, min(BATCH, seed + size - first)))
    return ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.most_common())


def run_batch(first: int, count: int) -> dict[str, int]:
    """How often each outcome came, in one subprocess."""
    with tempfile.TemporaryDirectory() as folder:
        progress, report, errors = Path(folder, "progress"), Path(folder, "report"), Path(folder, "errors")
        progress.write_text("")
        code = CALLS.format(first=first, count=count, progress=str(progress))
        with report.open("w") as stdout, errors.open("w") as stderr:
            worker = subprocess.Popen([sys.executable, "-c", code], stdout=stdout, stderr=stderr)
            seen, since = "", time.monotonic()
            while worker.poll() is None:
                time.sleep(0.05)
                if (now := progress.read_text()) != seen:
                    seen, since = now, time.monotonic()
                if time.monotonic() - since > MOST_SECONDS:
                    worker.kill()
                    worker.wait()
                    raise AssertionError(f"call of seed {seen} took more than {MOST_SECONDS} s")
        shown = f"status {worker.returncode} in call of seed {progress.read_text()}:\n{errors.read_text()[-2000:]}"
        assert worker.returncode == 0, shown
        *outcomes, lost = report.read_text().splitlines()
        assert int(lost) < MOST_LOST_BYTES, f"{int(lost):,} bytes were lost in calls {first} to {first + count}"
        return {outcome: int(number) for outcome, number in (line.rsplit(" ", 1) for line in outcomes)}


if __name__ == "__main__":
    from tests.siege import calls

    print(*calls.arguments(int(sys.argv[1])), sep="\n")
    print(calls.call(int(sys.argv[1])))
