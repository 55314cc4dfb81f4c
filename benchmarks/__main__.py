"""Speed and memory of conv2affine, next to floors and to what people do instead.

Per layer and layout, each contender is first called once in a fresh process: that tells its peak memory, and whether
its matrix is right. Those that are right are then timed side by side, in rounds in which each has its turn; a peer
that takes seconds gets fewer rounds, or only that first call. Two floors go with every table: `torch.zeros`
of as many bytes, and `zero_()` of memory that is there already.

Leave the machine alone meanwhile. The tables are printed; the output folder gets results.json, with every round and
the machine's description, and the plots: time by size, by threads and by the number of non-zeros.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.cases import BY_ID, CASES
from benchmarks.report import save, table
from benchmarks.series import LAYOUTS, Settings, measure, run_plots


def main() -> None:
    """Measure, print, save, draw."""
    arguments = parser().parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    layouts = LAYOUTS.values() if arguments.layout == "both" else [LAYOUTS[arguments.layout]]
    settings = Settings(
        arguments.rounds,
        arguments.threads,
        1e9 * arguments.limit_gb,
        arguments.peers,
        arguments.memory,
        arguments.device,
    )
    results = []
    arguments.output.mkdir(parents=True, exist_ok=True)
    for layout in layouts:
        for id in arguments.cases:
            with console.status(f"case {id}, {layout}"):
                measured = measure("cases", BY_ID[id], layout, settings)
            if measured:
                console.print(table(measured))
            results += measured
            save(results, settings, arguments.output / "results.json")
    if arguments.plots:
        from benchmarks import plots  # not needed otherwise, and slow to import

        with console.status("series for the plots"):
            results += run_plots(settings)
        save(results, settings, arguments.output / "results.json")
        for path in plots.draw(results, arguments.output):
            console.print(f"Plot: {path}")
    console.print(f"All numbers: {arguments.output / 'results.json'}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    ids = [case.id for case in CASES]
    layers = "; ".join(f"{case.id}: {case}" for case in CASES)
    add("--output", type=Path, default=Path("build/bench"), metavar="DIR", help="default: %(default)s")
    add("--cases", nargs="+", default=ids, choices=ids, metavar="ID", help=f"default: all. {layers}")
    add("--layout", default="both", choices=["strided", "sparse_csr", "both"], help="default: %(default)s")
    add("--rounds", type=int, default=7, metavar="N", help="default: %(default)s")
    add("--threads", type=int, default=2, metavar="N", help="default: %(default)s")
    add("--limit-gb", type=float, default=11, metavar="X", help="who needs more sits out; default: %(default)s")
    add("--device", default="cpu", help="default: %(default)s")
    add("--no-peers", dest="peers", action="store_false", help="conv2affine and the floors only")
    add("--no-plots", dest="plots", action="store_false", help="the tables only")
    add("--no-memory", dest="memory", action="store_false", help="check in this process, measure no memory")
    return result


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
