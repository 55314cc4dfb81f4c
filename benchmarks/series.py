"""Which contenders meet on which cases: for the tables, and for the plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.cases import SCALING, Case
from benchmarks.contender import Contender
from benchmarks.contenders import CONTENDERS
from benchmarks.measure import Result, probe, probe_apart, time_rounds, use


@dataclass(frozen=True)
class Settings:
    """The command line's."""

    rounds: int
    threads: int
    limit: float  # bytes
    peers: bool
    memory: bool
    device: str


# Only the peers that are worth a curve of their own.
PLOT_PEERS = ("scipy.sparse.kron, toarray", "unfold + scatter", "conv(eye)")
PLOT_ROUNDS = 3  # many points take the place of many rounds
LEFT_OUT = {"conv2affine.to_linear", "nn.Linear()"}  # of the plot


def measure(
    series: str, case: Case, layout: torch.layout, settings: Settings, only: Sequence[str] | None = None
) -> list[Result]:
    """Probe everyone, then time those that are right; `only` picks the peers of a plot."""
    use(settings.threads, settings.device)
    field = [c for c in CONTENDERS if c.layout is layout and (settings.peers or c.kind != "peer")]
    if only is not None:
        field = [c for c in field if (c.id in only if c.kind == "peer" else c.id not in LEFT_OUT)]
    if all(c.reason_against(case, settings.limit) for c in field if c.kind == "ours"):
        return []  # nothing to compare with
    results = [new_result(series, case, contender, settings) for contender in field]
    running = [(c, r) for c, r in zip(field, results, strict=True) if r.status == "ok"]
    time_rounds(running, case, settings.rounds, settings.threads)
    return results


def new_result(series: str, case: Case, contender: Contender, settings: Settings) -> Result:
    """What a probe says of one contender, or why there is none."""
    plan, layout = case.plan, contender.layout
    result = Result(
        series=series,
        case=case.id,
        layer=str(case),
        layout=str(layout).removeprefix("torch."),
        contender=contender.id,
        kind=contender.kind,
        threads=settings.threads,
        rows=plan.rows,
        cols=plan.cols,
        nnz=plan.nnz,
        bytes=case.bytes(layout),
        status=contender.reason_against(case, settings.limit),
    )
    if not result.status:
        look = probe_apart if settings.memory else probe
        seen = look(contender.id, layout, case, settings.threads, settings.device)
        result.status, result.first_call = seen.status, seen.seconds
        result.peak_bytes = seen.peak_bytes if settings.memory else None
    return result


def measure_plot(settings: Settings) -> list[Result]:
    """All points of the plot."""
    settings = replace(settings, rounds=min(settings.rounds, PLOT_ROUNDS))
    return [result for case in SCALING for result in measure("scaling", case, torch.strided, settings, only=PLOT_PEERS)]
