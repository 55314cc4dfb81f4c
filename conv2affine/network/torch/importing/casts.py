"""Lets a network begin after the cast of its inputs: of integers, such as pixels of an image, or to a wider dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

aten = torch.ops.aten
# They move elements of any dtype; so do views.
MOVING = (aten.clone, aten.flip, aten.repeat, aten.roll)
# With a floating-point result, they equal the same operator after a cast.
CASTING = (aten._to_copy, aten.mul, aten.div, aten.add, aten.sub)


def begin_at_casts(program: ExportedProgram, dtype: torch.dtype) -> None:
    """Give inputs another dtype where a decomposed program only moves them, and casts them to it; changed in place."""
    inputs = program.graph_signature.user_inputs
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if node.name in inputs and isinstance(value, Tensor) and _is_wider(dtype, value.dtype):
            for moved in _before_casts(node, dtype):
                moved.meta["val"] = moved.meta["val"].to(dtype)


def _is_wider(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether numbers of the other dtype are cast to this one without rounding, or are whole."""
    return dtype is not other and not other.is_complex and torch.promote_types(dtype, other) is dtype


def _before_casts(node: fx.Node, dtype: torch.dtype) -> list[fx.Node]:
    """A node and those that only move its elements before a cast; none if there are other users."""
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
