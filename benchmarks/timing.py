"""Seconds of calls, in rounds in which each call has its turn, so that a slow minute of the machine hits all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.benchmark import Timer

Call = Callable[[], Any]
SHORTEST = 0.02  # seconds of one round: calls are repeated until they fill it
PATIENCE = 4.0  # seconds for all rounds of a call that need not have all of them


def seconds(call: Call, threads: int) -> float:
    """Seconds of one call, in one round. The result is dropped at once, so giving the memory back counts."""
    timer = Timer("call()", globals={"call": call}, num_threads=threads)
    return timer.blocked_autorange(min_run_time=SHORTEST).median


def patient_rounds(rounds: int, first_call: float) -> int:
    """How many rounds fit into `PATIENCE`; a round is two calls, the first to warm up."""
    return min(rounds, int(PATIENCE / (2 * first_call)))


def interleave(
    prepare: Mapping[str, Callable[[], Call]], rounds: Mapping[str, int], threads: int
) -> dict[str, list[float]]:
    """Seconds of each call by round; `prepare` makes the call, for each round anew."""
    result: dict[str, list[float]] = {name: [] for name in prepare}
    for number in range(max(rounds.values(), default=0)):
        for name, make in prepare.items():
            if number < rounds[name]:
                result[name].append(seconds(make(), threads))
    return result
