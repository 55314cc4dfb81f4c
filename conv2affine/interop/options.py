"""The options of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

Form = Literal["graph", "mlp"]
Merge = Literal["auto", "always", "never"]
MaxPool = Literal["max", "relu"]
FormOption = Annotated[
    Form,
    typer.Option(
        help="graph: Gemm, Add, Relu and the steps that are not affine; mlp: one chain of Gemm and Relu, which is "
        "larger: plan shows its size."
    ),
]
MergeOption = Annotated[
    Merge,
    typer.Option(help="In form graph, multiply consecutive affine pieces: where it saves entries, always, or never."),
]
MaxPoolOption = Annotated[MaxPool, typer.Option(help="In form graph, keep max pooling, or make it Gemm and Relu.")]
DTypeOption = Annotated[
    Literal["float32", "float64"] | None, typer.Option(help="Type of the layers; that of the model if left out.")
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(help="Shape of an input with symbolic sizes, once per input: --shape image=1,3,32,32"),
]
BoxOption = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="LOW HIGH", help="For inputs from LOW to HIGH only; to convert, with --form mlp."),
]
SpecOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.vnnlib", help="For the inputs of a specification only; to convert, with --form mlp."),
]
BoundsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npz", help="Write the bounds of each layer in the box: LAYER.low and LAYER.high."),
]
CertifyOption = Annotated[
    bool, typer.Option("--certify", help="Say how far the result may differ in the box, as check IN OUT does.")
]
MaxGibOption = Annotated[
    float, typer.Option(min=0, max=2**20, help="Refuse layers of more than this, in GiB; plan says so.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def for_onnx(
    form: str, merge: str, max_pool: str, dtype: str | None, shape: list[str] | None, max_gib: float
) -> dict[str, Any]:
    """What `onnx.plan` and `onnx.convert` take."""
    options = {"form": form, "merge": merge, "max_pool": max_pool, "dtype": dtype and getattr(torch, dtype)}
    return {**options, "shapes": shapes_by_name(shape), "max_bytes": int(max_gib * 2**30)}


def shapes_by_name(given: list[str] | None) -> dict[str, tuple[int, ...]]:
    """Shapes by name, from name=1,3,32,32."""
    shapes = {}
    for text in given or []:
        name, _, sizes = text.rpartition("=")
        if not name or not all(size.strip().isdecimal() for size in sizes.split(",")):
            raise ValueError(f"--shape ({text}) must be a name and sizes, as in image=1,3,32,32")
        shapes[name] = tuple(int(size) for size in sizes.split(","))
    return shapes
