"""Speed and memory of conv2affine, next to floors and to what people do instead.

The tables `dense` and `csr` have contenders. Each is first called once in a fresh process, which shows its peak memory
and whether its matrix is right. Those that are right are then timed side by side, in rounds in which each has its turn;
a peer that takes seconds gets fewer rounds, or only that first call. Two floors go with both tables: `torch.zeros` of
as many bytes, and `zero_()` of memory that is there already.

`training` has gradients, `layer` the sparse layer, `long` kernels as long as the input: calls in rounds, as ratios to a
floor. `cold` has first calls, each in a new process. With `--against`, all calls of ours are timed by turns in this
checkout and in another one instead, in `conversions`, `training`, `layer` and `long`.

Leave the machine alone meanwhile. The tables are printed; the output folder gets results.json, with every round and
the machine's description, and with `--plot` the plot.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.against import Worker, compare
from benchmarks.calls import COMPARED, TABLES, fitting, measure_calls
from benchmarks.cases import BY_ID, CASES, Case
from benchmarks.cold import COLD, measure_cold
from benchmarks.measure import use
from benchmarks.report import calls_table, cold_table, comparison_table, save, table
from benchmarks.series import Settings, measure, measure_plot

LAYOUTS = {"dense": torch.strided, "csr": torch.sparse_csr}


def main() -> None:
    """Measure, print, save, draw."""
    arguments = read_arguments()
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    arguments.output.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        arguments.rounds,
        arguments.threads,
        1e9 * arguments.limit_gb,
        arguments.peers,
        arguments.memory,
        arguments.device,
    )
    runs = [against] if arguments.against else [side_by_side, cold]
    results = []
    for found in chain.from_iterable(run(arguments, settings, console) for run in runs):
        results += found
        save(results, settings, arguments.output / "results.json")
    if arguments.plot:
        from benchmarks.plot import draw  # not needed otherwise, and slow to import

        with console.status("points of the plot"):
            points = measure_plot(settings)
        save([*results, *map(asdict, points)], settings, arguments.output / "results.json")
        draw(points).savefig(arguments.output / "scaling.png", dpi=200)
    console.print(f"All numbers: {arguments.output / 'results.json'}")


def side_by_side(arguments: argparse.Namespace, settings: Settings, console: Console) -> Any:
    """Everyone who takes part, in this process."""
    use(settings.threads, settings.device)
    for name in arguments.table or [*LAYOUTS, *TABLES]:
        if name == "cold":
            continue
        for case in cases_of(name):
            if arguments.cases and case.id not in arguments.cases:
                continue
            with console.status(f"{name}, case {case.id}"):
                if name in LAYOUTS:
                    measured = measure(name, case, LAYOUTS[name], settings)
                    printed, found = measured and table(measured), list(map(asdict, measured))
                else:
                    tasks = fitting(TABLES[name], case, settings.limit)
                    tasks = [task for task in tasks if settings.peers or task.kind != "peer"]
                    seconds = measure_calls(tasks, settings.rounds, settings.threads)
                    printed = calls_table(name, case, tasks, seconds)
                    found = [{"series": name, "case": case.id, "layer": str(case), "seconds": seconds}]
            if printed:
                console.print(printed)
            yield found


def cold(arguments: argparse.Namespace, settings: Settings, console: Console) -> Any:
    """First calls, in processes of their own."""
    if arguments.table and "cold" not in arguments.table:
        return
    for case, layout in COLD:
        if arguments.cases and case.id not in arguments.cases:
            continue
        with console.status(f"cold, case {case.id}"):
            measured = measure_cold(case, layout, settings.rounds, settings.threads)
        console.print(cold_table(measured))
        yield [asdict(measured)]


def against(arguments: argparse.Namespace, settings: Settings, console: Console) -> Any:
    """This checkout and another one, by turns."""
    workers = tuple(Worker(checkout, settings.threads) for checkout in (Path.cwd(), arguments.against))
    for name in arguments.table or COMPARED:
        for case in COMPARED[name].cases:
            if arguments.cases and case.id not in arguments.cases:
                continue
            with console.status(f"{name}, case {case.id}"):
                comparisons = compare(workers, name, case, settings.rounds, settings.limit)
            console.print(comparison_table(comparisons))
            yield list(map(asdict, comparisons))
    for worker in workers:
        worker.close()


def read_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line, or those given; exits with an error if no table has what they ask for."""
    commands = parser()
    arguments = commands.parse_args(given)
    here, there = [*LAYOUTS, *TABLES, "cold"], [*COMPARED]
    tables = there if arguments.against else here
    for name in arguments.table or ():
        if name not in tables:
            commands.error(f"--table {name} goes {'without' if arguments.against else 'with'} --against only")
    cases = [case.id for name in arguments.table or tables for case in cases_of(name)]
    if arguments.cases and not set(cases) & set(arguments.cases):
        commands.error(
            f"--cases must be of the tables {', '.join(arguments.table or tables)}: {', '.join(dict.fromkeys(cases))}"
        )
    return arguments


def cases_of(table: str) -> list[Case]:
    """The cases of a table."""
    if table in LAYOUTS:
        return CASES
    return [case for case, _ in COLD] if table == "cold" else COMPARED[table].cases


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    layers = "; ".join(f"{case.id}: {case}" for case in BY_ID.values())
    tables = [*LAYOUTS, *TABLES, "cold", "conversions"]
    add("--output", type=Path, default=Path("build/bench"), metavar="DIR", help="default: %(default)s")
    add("--table", nargs="+", choices=tables, metavar="NAME", help=f"{', '.join(tables)}; default: all")
    add("--cases", nargs="+", choices=list(BY_ID), metavar="ID", help=f"default: all. {layers}")
    add("--rounds", type=int, default=7, metavar="N", help="default: %(default)s")
    add("--threads", type=int, default=2, metavar="N", help="default: %(default)s")
    add("--limit-gb", type=float, default=11, metavar="X", help="skip what needs more; default: %(default)s")
    add("--device", default="cpu", help="of the tables dense and csr; default: %(default)s")
    add("--against", type=Path, metavar="PATH", help="another checkout, with its own compiled part")
    add("--plot", action="store_true", help="also measure and draw the time by size")
    add("--no-peers", dest="peers", action="store_false", help="conv2affine and the floors only")
    add("--no-memory", dest="memory", action="store_false", help="check in this process, measure no memory")
    return result


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
