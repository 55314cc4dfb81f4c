"""The options of the command line."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BoundsOption",
    "BoxOption",
    "DType",
    "DTypeOption",
    "DebugOption",
    "Form",
    "FormOption",
    "JsonOption",
    "MaxGibOption",
    "MaxPool",
    "MaxPoolOption",
    "Merge",
    "MergeOption",
    "ShapeOption",
    "SpecOption",
]


class Form(str, Enum):
    """The form of the result."""

    graph = "graph"
    mlp = "mlp"


class Merge(str, Enum):
    """Which affine pieces are multiplied."""

    auto = "auto"
    always = "always"
    never = "never"


class MaxPool(str, Enum):
    """How max pooling is written."""

    max = "max"
    relu = "relu"


class DType(str, Enum):
    """The type of the layers."""

    float32 = "float32"
    float64 = "float64"


FormOption = Annotated[
    Form,
    typer.Option(help="graph: Gemm, Add, Relu and the steps that are not affine; mlp: one chain of Gemm and Relu."),
]
MergeOption = Annotated[
    Merge,
    typer.Option(help="Multiply affine pieces that follow one another: where it saves entries, always, or never."),
]
MaxPoolOption = Annotated[MaxPool, typer.Option(help="In form graph, keep max pooling, or make it Gemm and Relu.")]
DTypeOption = Annotated[DType | None, typer.Option(help="Type of the layers; that of the model if left out.")]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(help="Shape of an input with symbolic sizes, once per input: --shape image=1,3,32,32"),
]
BoxOption = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="LOW HIGH", help="For inputs from LOW to HIGH only; a conversion in form mlp."),
]
SpecOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.vnnlib", help="For the inputs of a specification only; a conversion in form mlp."),
]
BoundsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npz", help="Write the bounds of each layer in the box: LAYER.low and LAYER.high."),
]
MaxGibOption = Annotated[
    float, typer.Option(min=0, max=2**20, help="Refuse layers of more than this, in GiB; plan says so.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
