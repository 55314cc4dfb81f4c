"""The table of docs/onnx.md: what becomes of the networks of other people.

    python -m benchmarks.onnx_networks ../shared/networks > table.md

Each file is converted to both forms in a process of its own, whose time and memory are shown, imports included.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

FORMS = ("graph", "mlp")


def convert(path: str, form: str) -> dict[str, Any]:
    """Convert one file."""
    from conv2affine import onnx

    try:
        result = onnx.convert(path, form=form)
    except Exception as error:
        return {"refused": str(error).partition("\n")[0]}
    return {
        "layers": len(result.plan.layers),
        "nnz": result.plan.nnz,
        "kept": len(result.kept),
        "difference": result.difference,
    }


def measure(path: Path, form: str) -> dict[str, Any]:
    """Convert one file in a process of its own."""
    before = time.perf_counter()
    process = Popen([sys.executable, "-m", __spec__.name, "--one", str(path), form], stdout=PIPE, stderr=DEVNULL)
    answer = process.stdout.read()
    seconds = time.perf_counter() - before
    process.wait()
    return {"seconds": seconds, **json.loads(answer)}


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
    if sys.argv[1] == "--one":
        found = convert(*sys.argv[2:])
        found["peak"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(found))
        return
    print("| file | form | | layers | entries | difference | s | GB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
        print(row(path), flush=True)


if __name__ == "__main__":
    main()
