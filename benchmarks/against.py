"""This checkout next to another one: the same calls, in two processes that take turns round by round."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.calls import COMPARED, Task, fitting
from benchmarks.cases import Case
from benchmarks.timing import PATIENCE

ROOT = Path(__file__).parents[1]


@dataclass
class Comparison:
    """Seconds of one call in both checkouts, by round."""

    table: str
    case: str
    layer: str
    call: str
    kind: str
    here: list[float] = field(default_factory=list)
    there: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def ratio(self) -> float | None:
        """How much longer it takes here."""
        return median(self.here) / median(self.there) if self.here and self.there else None


class Worker:
    """A process that imports conv2affine from a checkout."""

    def __init__(self, checkout: Path, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.worker", str(checkout.resolve()), str(threads)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seconds(self, table: str, case: Case, task: Task) -> float | str:
        """Seconds of one round, or why there are none."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps([table, case.id, task.name]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # there is no answer then
        answer = self.process.stdout.readline()
        if not answer:
            self.close()
            raise RuntimeError(f"the worker ended with exit code {self.process.returncode}: {self.process.args}")
        seconds: float | str = json.loads(answer)
        return seconds

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def compare(workers: tuple[Worker, Worker], table: str, case: Case, rounds: int, limit: float) -> list[Comparison]:
    """All calls of one case; slow ones get as many rounds as there is patience for, at least one."""
    comparisons = []
    for task in fitting(COMPARED[table], case, limit / 2):  # both processes hold their memory
        if task.kind == "peer":
            continue
        result = Comparison(table, case.id, str(case), task.name, task.kind)
        comparisons.append(result)
        spent = 0.0
        while len(result.there) < rounds and spent < PATIENCE and not result.error:
            for worker, seconds in zip(workers, (result.here, result.there), strict=True):
                answer = worker.seconds(table, case, task)
                if isinstance(answer, str):
                    result.error = answer
                    break
                seconds.append(answer)
                spent += 2 * answer
    return comparisons
