"""Results as tables for the eye and as JSON for everything else."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks.against import Comparison
from benchmarks.calls import Task
from benchmarks.cases import Case
from benchmarks.cold import Cold
from benchmarks.measure import Result
from benchmarks.ours import FRESH, WARM
from benchmarks.series import Settings

BYTES = ("B", "kB", "MB", "GB")
STYLES = {"ours": "bold", "floor": "dim", "peer": ""}
PACKAGES = ("conv2affine", "torch", "numpy", "scipy", "einconv")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


def table(results: list[Result]) -> Group:
    """One case in one layout, fastest first."""
    first = results[0]
    size = f"{first.rows:,} x {first.cols:,}, {first.nnz:,} non-zeros, {unit(first.bytes, BYTES)}"
    heading = Text(f"{first.case}  {first.layer}, {first.layout}, {first.threads} threads\n   {size}", "bold")
    rows = Table("contender", box=SIMPLE_HEAD)
    for column in ("ms, median", "min .. max", "rounds", "/ zeros", "/ zero_()", "peak MB"):
        rows.add_column(column, justify="right")
    floors = {r.contender: r.median for r in results}
    for r in sorted(results, key=lambda r: r.median or float("inf")):
        if r.kind == "floor" and r.median is None:
            continue
        rows.add_row(r.contender, *cells(r, floors.get(FRESH), floors.get(WARM)), style=STYLES[r.kind])
    return Group(heading, rows)


def calls_table(name: str, case: Case, tasks: list[Task], seconds: dict[str, list[float]]) -> Group:
    """The calls on one case, and their ratios to the fastest floor of the same batch."""
    rows = Table("call", box=SIMPLE_HEAD)
    for column in ("ms, median", "min .. max", "/ floor"):
        rows.add_column(column, justify="right")
    for task in tasks:
        times = seconds[task.name]
        floors = [median(seconds[other.name]) for other in tasks if other.kind == "floor" and alike(task, other)]
        ratio = digits(median(times) / min(floors)) if floors else ""
        rows.add_row(task.name, digits(1e3 * median(times)), extent(times), ratio, style=STYLES[task.kind])
    return Group(Text(f"{case.id}  {case}, {name}", "bold"), rows)


def cold_table(cold: Cold) -> Group:
    """First calls of one case, and the memory that they met."""
    rows = Table("first call", box=SIMPLE_HEAD)
    for column in ("ms, median", "min .. max", "CPU ms", "/ zeros", "/ zeros, CPU"):
        rows.add_column(column, justify="right")
    for name, calls in (("conv2affine", cold.ours), (FRESH, cold.zeros)):
        ratios = [digits(cold.ratio(what)) for what in ("seconds", "cpu_seconds")] if calls is cold.ours else ["", ""]
        cpu = digits(1e3 * median(call.cpu_seconds for call in calls))
        rows.add_row(name, *times_of([call.seconds for call in calls]), cpu, *ratios)
    calls = cold.ours + cold.zeros
    pages = [seconds for call in calls for seconds in call.page_seconds]
    met = f"{unit(min(call.free_bytes for call in calls), BYTES)} free"
    if pages:
        met += f"; first touch of 2 MiB: median {digits(1e3 * median(pages))} ms, {extent(pages)}"
    heading = f"{cold.case}  {cold.layer}, {cold.layout}, {unit(cold.bytes, BYTES)}, {len(cold.ours)} rounds"
    huge = ", ".join(f"{name} {chosen(HUGE_PAGES / name)}" for name in ("enabled", "defrag"))
    return Group(Text(heading, "bold"), Text(f"   {met}; huge pages: {huge}"), rows)


def alike(task: Task, floor: Task) -> bool:
    """Whether a floor is one of this task: of the same batch, where there are several."""
    return task.name.partition(", batch")[2] == floor.name.partition(", batch")[2]


def comparison_table(comparisons: list[Comparison]) -> Group:
    """The calls on one case, in both checkouts."""
    rows = Table("call", box=SIMPLE_HEAD)
    for column in ("ms here", "min .. max", "ms there", "min .. max", "here / there"):
        rows.add_column(column, justify="right")
    for c in comparisons:
        cells = [text for times in (c.here, c.there) for text in times_of(times)]
        rows.add_row(c.call, *cells, c.error[:60] if c.error else digits(c.ratio or 0), style=STYLES[c.kind])
    heading = f"{comparisons[0].case}  {comparisons[0].layer}, {comparisons[0].table}" if comparisons else ""
    return Group(Text(heading, "bold"), rows)


def times_of(times: list[float]) -> list[str]:
    """Median and extent."""
    return [digits(1e3 * median(times)), extent(times)] if times else ["", ""]


def extent(times: list[float]) -> str:
    """From the fastest round to the slowest one, in ms."""
    return f"{digits(1e3 * min(times))} .. {digits(1e3 * max(times))}" if len(times) > 1 else ""


def cells(r: Result, fresh: float | None, warm: float | None) -> list[str]:
    """One row without its name."""
    if r.median is None:
        return [r.status if len(r.status) < 30 else r.status.split(":")[0], *[""] * 5]
    ratios = [digits(r.median / floor) if floor else "" for floor in (fresh, warm)]
    peak = "" if r.peak_bytes is None else f"{r.peak_bytes / 1e6:,.0f}"
    return [digits(1e3 * r.median), extent(r.seconds), str(len(r.seconds)), *ratios, peak]


def unit(value: float, units: tuple[str, ...]) -> str:
    """A round number with the unit that keeps it short."""
    if not value:
        return "0"
    power = 0
    while value >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {units[power]}"


def digits(number: float) -> str:
    """Three digits, no exponent."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.{2 if number < 10 else 1}f}" if number >= 1 else f"{number:.3g}"


def save(results: list[dict[str, Any]], settings: Settings, path: Path) -> None:
    """Everything, with what it was measured on."""
    content = {"machine": machine(), "settings": asdict(settings), "results": results}
    path.write_text(json.dumps(content, indent=1) + "\n")


def machine() -> dict[str, object]:
    """What a reader needs to compare these numbers with others."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": os.getloadavg(),
        "system": platform.platform(),
        "huge pages": {name: chosen(HUGE_PAGES / name) for name in ("enabled", "defrag")},
        "python": platform.python_version(),
        "versions": {package: installed(package) for package in PACKAGES},
    }


def cpu_model() -> str:
    """As Linux names it, or else as Python does."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor()


def chosen(path: Path) -> str | None:
    """The setting in brackets."""
    found = re.search(r"\[(.*)\]", path.read_text()) if path.exists() else None
    return found[1] if found else None


def installed(package: str) -> str | None:
    """Its version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
