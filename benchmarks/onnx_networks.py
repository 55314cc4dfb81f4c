"""The table of docs/onnx-networks.md: the conversion of public networks.

    python -m benchmarks.onnx_networks FOLDER > table.md

Each file is converted to both forms in a process of its own, whose memory is shown, PyTorch's 0.3 GB included. Time is
that of the conversion and its check, without imports.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from conv2affine import onnx

FORMS = ("graph", "mlp")


def convert(path: Path, form: str, answer: Connection) -> None:
    """Convert one file, and send what is known then."""
    warnings.simplefilter("ignore")
    before = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        result = onnx.convert(path, form=form)
        found = {"layers": len(result.plan.layers), "nnz": result.plan.nnz, "kept": len(result.kept)}
        found["difference"] = result.difference
    except Exception as error:
        found["refused"] = str(error).partition("\n")[0].replace("|", "\\|")
    found["seconds"] = time.perf_counter() - before
    found["peak"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer.send(found)


def measure(path: Path, form: str) -> dict[str, Any]:
    """Convert one file in a process of its own."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=convert, args=(path, form, there))
    process.start()
    found: dict[str, Any] = here.recv()
    process.join()
    return found


def row(path: Path) -> str:
    """One line of the table for each form; one for both if both are refused alike."""
    cells = []
    for form in FORMS:
        found = measure(path, form)
        if "refused" in found:
            cells.append((form, f"refused: {found['refused']}", "", "", "", found))
        else:
            numbers = (f"{found['layers']}", f"{found['nnz']:,}", f"{found['difference']:.0e}")
            cells.append((form, f"{found['kept']} kept" if found["kept"] else "converted", *numbers, found))
    if cells[0][1] == cells[1][1] and cells[0][1].startswith("refused"):
        cells = [("both", *cells[0][1:])]
    return "\n".join(
        f"| {path.stem} | {form} | {' | '.join(texts)} | {found['seconds']:.1f} | {found['peak'] / 1e9:.1f} |"
        for form, *texts, found in cells
    )


def main() -> None:
    print("| file | form | | layers | entries | difference | s | GB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
        print(row(path), flush=True)


if __name__ == "__main__":
    main()
