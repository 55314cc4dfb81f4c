"""The table of docs/readers.md: `python -m benchmarks.files FOLDER`, for every ONNX file in a folder."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

from conv2affine.onnx import convert


def row(path: Path) -> str:
    """The file's line: for each form its layers, entries, kept nodes and seconds, or why it is refused."""
    cells = [path.stem]
    for form in ("graph", "mlp"):
        start = time.perf_counter()
        try:
            result = convert(path, form=form)
        except (MemoryError, NotImplementedError, ValueError) as error:
            cells.append(str(error).partition("\n")[0].partition(";")[0])
            continue
        seconds = time.perf_counter() - start
        kept = f", {len(result.kept)} nodes kept" if result.kept else ""
        cells.append(f"{len(result.plan.layers)} layers, {result.plan.nnz:,} entries{kept}, {seconds:.1f} s")
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def main() -> None:
    """Print the table."""
    warnings.filterwarnings("ignore", message="Sparse CSR tensor")
    print("| file | graph | mlp |\n| --- | --- | --- |")
    for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
        print(row(path), flush=True)


if __name__ == "__main__":
    main()
