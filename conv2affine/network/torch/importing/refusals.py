"""Refuses operators that no graph can have: their results mix samples, or are not tensors of known size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.utils import _pytree as pytree

from conv2affine.network.torch.importing.call import operator_name, origin
from conv2affine.network.torch.importing.constants import is_random


def check_tensor(spec: InputSpec) -> None:
    """Refuse what a program takes besides its inputs, and is no tensor."""
    if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
        return
    used = getattr(spec.arg, "class_fqn", f"an object of the kind {spec.kind.name.lower()}")
    raise NotImplementedError(
        f"forward must use tensors only, and uses {used}; compute what it gives once, and register that as a buffer"
    )


def check_chance(node: fx.Node, args: Any, kwargs: Any) -> None:
    """Refuse an operator that draws random numbers, or takes statistics of its batch; with its arguments."""
    target: Any = node.target
    name = operator_name(target)
    takes_statistics = name == "_native_batch_norm_legit_functional" or (
        name == "_native_batch_norm_legit" and "stats" in target._overloadname
    )
    if takes_statistics or is_random(target, args, kwargs):
        raise ValueError(
            f"{origin(node)} ({name}) must not depend on chance or on the other samples of a batch; call "
            "model.eval(), and give batch norm its running statistics"
        )


def check_state(program: ExportedProgram, replaced: frozenset[str]) -> None:
    """Refuse a buffer that a run changes and the outputs depend on; `replaced` are those that each run replaces."""
    signature = program.graph_signature
    outputs = set(signature.user_outputs)
    for name in sorted(replaced.union(signature.buffers_to_mutate.values())):
        reached: set[fx.Node] = set()
        for node in program.graph.nodes:
            # What is overwritten is not read.
            read = node.all_input_nodes[node.target is torch.ops.aten.copy.default :]
            if signature.inputs_to_buffers.get(node.name) == name or (
                node.op == "call_function" and reached.intersection(read)
            ):
                reached.add(node)
        if outputs.intersection(node.name for node in reached):
            raise ValueError(
                f"the model must give the same result for the same input, and {name} is a buffer that it keeps "
                "from one run to the next; make it an input and an output"
            )


def check_result(node: fx.Node, reached: Sequence[fx.Node]) -> None:
    """Refuse an operator whose result is no tensor of a known size, or depends on where elements lie in memory.

    `reached` are its arguments that depend on the network's inputs.
    """
    name = operator_name(node.target)
    if isinstance(node.meta["val"], torch.SymInt | torch.SymFloat | torch.SymBool):
        raise ValueError(
            f"{origin(node)} ({name}) must not make one number of a whole batch; let it stay a tensor, with an "
            "element for each sample"
        )
    if _has_unknown_size(node, name, reached):
        raise NotImplementedError(
            f"{origin(node)} ({name}) must not select elements by values of the inputs, as x[x > 0] does; multiply "
            "by a mask, or use torch.where"
        )
    if name.startswith("as_strided") and not _fills_memory(node.all_input_nodes[0]):
        raise NotImplementedError(
            f"{origin(node)} ({name}) must take a tensor that is contiguous and fills its memory, not a view of "
            "another; call .clone(memory_format=torch.contiguous_format) before it"
        )


def _has_unknown_size(node: fx.Node, name: str, reached: Sequence[fx.Node]) -> bool:
    """Whether values of the network's inputs decide how many elements are read or written."""
    if name in ("index", "index_put"):
        indices = set(reached).intersection(pytree.tree_leaves(node.args[1]))
        return any(index.meta["val"].dtype in (torch.bool, torch.uint8) for index in indices)
    return torch.Tag.dynamic_output_shape in node.target.tags and bool(reached)  # type: ignore[union-attr]


def _fills_memory(node: fx.Node) -> bool:
    """Whether the elements of a tensor lie in memory in their order, and nothing else with them."""
    tensor = node.meta["val"]
    return bool(tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize)
