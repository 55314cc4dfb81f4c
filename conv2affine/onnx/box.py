"""The box of inputs that a result is for: the one that a user gives, or that of a specification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conv2affine.interop.vnnlib import Specification, read_spec
from conv2affine.network.proof.box import Box, read_box

__all__ = ["BoxArgument", "SpecArgument", "box_of", "given_box"]

BoxArgument = tuple[Any, Any] | None
SpecArgument = Specification | str | Path | None


def given_box(box: BoxArgument, spec: SpecArgument) -> BoxArgument | Specification:
    """Which of both a user gives; a specification is read."""
    if spec is None:
        return box
    if box is not None:
        raise ValueError("box and spec must not come together: the box is that of the specification")
    return spec if isinstance(spec, Specification) else read_spec(spec)


def box_of(given: BoxArgument | Specification, shapes: Mapping[str, Sequence[int]], outputs: int) -> Box | None:
    """The box of a network; None for all inputs.

    Args:
        given: As from `given_box`.
        shapes: Of the inputs by name, for one sample.
        outputs: Number of output elements.
    """
    if isinstance(given, Specification):
        given = given.box_for(shapes, outputs)
    return None if given is None else read_box(given, shapes)
