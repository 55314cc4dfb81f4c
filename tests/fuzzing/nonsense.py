"""Calls of the compiled operators with arguments of which a few are wrong, in subprocesses that are watched.

An operator must give a result whose indices lie inside its matrix, or raise a Python exception. It must not crash,
hang, lose memory, or show a C++ trace. `python -m tests.fuzzing.nonsense SEED` prints and repeats one call.
"""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

BATCH = 2_500  # calls in one subprocess
MAX_SECONDS = 60  # of one call
MAX_FAULTS = 20  # then it stops
MAX_LOST_BYTES = 100e6  # of one subprocess, between its first and its last hundred calls
# AddressSanitizer ends the process where `new` would throw.
NO_MEMORY = "AddressSanitizer: allocator is out of memory"

CALLS = "from tests.fuzzing import calls; calls.run({first}, {count}, {progress!r})"


def fuzz(seed: int, size: int) -> str:
    """Make `size` calls."""
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    first, stop = seed, seed + size
    while first < stop and len(faults) < MAX_FAULTS:
        made, fault = run_batch(first, min(BATCH, stop - first), outcomes)
        first += made
        faults += [fault] if fault else []
    assert not faults, "\n\n".join(faults)
    return ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.most_common())


def run_batch(first: int, count: int, outcomes: Counter[str]) -> tuple[int, str]:
    """(calls made in one subprocess, what went wrong in the last of them); counts the outcomes if nothing did."""
    with tempfile.TemporaryDirectory() as folder:
        progress, report, errors = Path(folder, "progress"), Path(folder, "report"), Path(folder, "errors")
        progress.write_text(str(first))
        code = CALLS.format(first=first, count=count, progress=str(progress))
        with report.open("w") as stdout, errors.open("w") as stderr:
            worker = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=stdout, stderr=stderr)
            seen, since = "", time.monotonic()
            while worker.poll() is None:
                time.sleep(0.05)
                if (now := progress.read_text()) != seen:
                    seen, since = now, time.monotonic()
                if time.monotonic() - since > MAX_SECONDS:
                    worker.kill()
                    worker.wait()
        if worker.returncode:
            last = int(progress.read_text())
            if NO_MEMORY in errors.read_text():
                outcomes["ends without memory"] += 1
                return last + 1 - first, ""
            what = f"status {worker.returncode}, {time.monotonic() - since:.0f} s, in call of seed {last}"
            return last + 1 - first, f"{what}:\n{errors.read_text()[-1000:]}"
        *lines, lost = report.read_text().splitlines()
        for line in lines:
            outcome, number = line.rsplit(" ", 1)
            outcomes[outcome] += int(number)
        too_much = int(lost) > MAX_LOST_BYTES
        return count, f"{int(lost):,} bytes were lost from call {first} to {first + count}" if too_much else ""


if __name__ == "__main__":
    from tests.fuzzing import calls

    print(*calls.arguments(int(sys.argv[1])), sep="\n")
    print(calls.call(int(sys.argv[1])))
