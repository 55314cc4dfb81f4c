"""The opset of a result."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import defs

from conv2affine.network.graph import Kept, Step

__all__ = ["MIN_OPSET", "choose_opset"]

# Unmaintained readers support opsets up to this; every operator that we write is older.
OPSET = 13
MIN_OPSET = 8  # the first in which Max broadcasts


def choose_opset(steps: Sequence[Step | Kept], wanted: int | None) -> int:
    """The opset of the result: one in which all steps that are kept mean what they meant."""
    sources = sorted({step.call.opset for step in steps}, reverse=True)
    for opset in [OPSET, *sources, *range(OPSET - 1, MIN_OPSET - 1, -1)] if wanted is None else [wanted]:
        changed = [step for step in steps if _since(step, opset) != _since(step, step.call.opset)]
        if not changed:
            return opset
    step = changed[0]
    raise ValueError(
        f"opset ({wanted or OPSET}) must not change the meaning of node {', '.join(step.origin)} "
        f"({step.call.op_type}), which is kept; use opset {step.call.opset}"
    )


def _since(step: Step | Kept, opset: int) -> int:
    """The opset that last changed an operator."""
    try:
        return int(defs.get_schema(step.call.op_type, opset, "").since_version)
    except defs.SchemaError:
        return 0
