"""Where a network of whole numbers, such as the pixels of an image, begins: at their cast to floating point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

__all__ = ["begin_at_casts"]

aten = torch.ops.aten
# They move elements, and take whole numbers as they take others; so do views.
MOVING = (aten.clone, aten.flip, aten.repeat, aten.roll)
# Their result is that of the same operator after a cast, if it has a floating dtype.
CASTING = (aten._to_copy, aten.mul, aten.div, aten.add, aten.sub)


def begin_at_casts(program: ExportedProgram, dtype: torch.dtype) -> None:
    """Let inputs of whole numbers be floating, where a program does no more with them than to move and cast them.

    Args:
        program: Decomposed; what it says of dtypes is changed in place.
        dtype: Of the inputs then.
    """
    inputs = program.graph_signature.user_inputs
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if node.name in inputs and isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex()):
            for moved in _before_casts(node, dtype):
                moved.meta["val"] = moved.meta["val"].to(dtype)


def _before_casts(node: fx.Node, dtype: torch.dtype) -> list[fx.Node]:
    """A node and all that only moves its elements before they are cast; none, if there are other users."""
    moved = [node]
    for each in moved:
        for user in each.users:
            target: Any = user.target
            packet = getattr(target, "overloadpacket", None)
            result = user.meta.get("val")
            if packet is aten._assert_tensor_metadata:
                continue
            if not isinstance(result, Tensor):
                return []
            if packet in CASTING and result.dtype is dtype:
                continue
            is_view = packet is not None and any(each.alias_info for each in target._schema.returns)
            if result.dtype is not each.meta["val"].dtype or not (is_view or packet in MOVING):
                return []
            if user not in moved:
                moved.append(user)
    return moved
