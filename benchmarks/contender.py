"""What takes part: a contender, and how one function becomes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from benchmarks.cases import Case

Build = Callable[[Any, tuple[int, int]], Any]  # conv, input_size -> matrix


@dataclass(frozen=True)
class Contender:
    """One way to a matrix in one layout, or a floor to compare with.

    Args:
        id: Name in tables and plots.
        layout: Layout of the result.
        kind: "ours"; "floor" for work that any of them does at least, whose result is not checked; or "peer".
        prepare: Does what is not timed, and returns the call that is.
        peak: Estimated bytes at the peak; above the limit the contender sits a case out.
        lacks: Options that it cannot do, as in `Case.needs`.
        too_slow: Whether a case is not worth the wait.
    """

    id: str
    layout: torch.layout
    kind: Literal["ours", "floor", "peer"]
    prepare: Callable[[Case], Callable[[], Any]]
    peak: Callable[[Case], float]
    lacks: frozenset[str] = frozenset()
    too_slow: Callable[[Case], bool] = lambda case: False

    def reason_against(self, case: Case, limit: float) -> str:
        """Why it sits a case out, given a limit in bytes; empty if it takes part."""
        if missing := self.lacks & case.needs:
            return f"no {', '.join(sorted(missing))}"
        if self.too_slow(case):
            return "would take too long"
        if (peak := self.peak(case)) > limit:
            return f"would need {peak / 1e9:.0f} GB"
        return ""


def calling(build: Build) -> Callable[[Case], Callable[[], Any]]:
    """`prepare` of a function from a layer and an input size to a matrix."""
    return lambda case: partial(build, case.conv(), case.input_size)


def result_bytes(layout: torch.layout) -> Callable[[Case], float]:
    """`peak` of a contender that needs the result and nothing else."""
    return lambda case: case.bytes(layout)
