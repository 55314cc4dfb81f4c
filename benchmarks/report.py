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

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks.measure import Result
from benchmarks.ours import FRESH, WARM
from benchmarks.series import Settings
from conv2affine.planning import readable_bytes

STYLES = {"ours": "bold", "floor": "dim", "peer": ""}
PACKAGES = ("conv2affine", "torch", "numpy", "scipy", "einconv")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


def table(results: list[Result]) -> Group:
    """One case in one layout, fastest first."""
    first = results[0]
    size = f"{first.rows:,} x {first.cols:,}, {first.nnz:,} non-zeros, {readable_bytes(first.bytes)}"
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


def cells(r: Result, fresh: float | None, warm: float | None) -> list[str]:
    """One row without its name."""
    if r.median is None:
        return [r.status if len(r.status) < 30 else r.status.split(":")[0], *[""] * 5]
    spread = f"{digits(1e3 * min(r.seconds))} .. {digits(1e3 * max(r.seconds))}" if len(r.seconds) > 1 else ""
    ratios = [digits(r.median / floor) if floor else "" for floor in (fresh, warm)]
    peak = "" if r.peak_bytes is None else f"{r.peak_bytes / 1e6:,.0f}"
    return [digits(1e3 * r.median), spread, str(len(r.seconds)), *ratios, peak]


def digits(number: float) -> str:
    """Three digits, no exponent."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.{2 if number < 10 else 1}f}" if number >= 1 else f"{number:.3g}"


def save(results: list[Result], settings: Settings, path: Path) -> None:
    """Everything, with what it was measured on."""
    content = {"machine": machine(), "settings": asdict(settings), "results": [asdict(r) for r in results]}
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
