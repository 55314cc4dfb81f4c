"""A PyTorch operator with its constant arguments, to run a step as it was."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from conv2affine.network.graph import Slot, Value

# Operators that treat the first axis as a batch, whatever their constant arguments are.
BATCHED = re.compile(
    r"(adaptive_)?max_pool\dd(_with_indices)?|(group|instance)_norm|scaled_dot_product_attention|upsample_.*"
)
# Operators that treat all axes as a batch but those of their argument `dim`.
ALONG_DIM = {
    *("_log_softmax", "_softmax", "amax", "amin", "any", "argmax", "argmin", "cat", "cummax", "cummin", "cumprod"),
    *("cumsum", "flip", "gather", "glu", "index_select", "kthvalue", "linalg_vector_norm", "log_softmax"),
    *("logcumsumexp", "max", "mean", "median", "min", "mode", "nanmedian", "prod", "scatter", "scatter_add"),
    *("scatter_reduce", "softmax", "sort", "sum", "topk", "var", "var_mean"),
}
# Operators that treat all axes as a batch but the last two.
OF_MATRICES = re.compile(
    r"_?linalg_(cholesky|det|eigh?|inv|ldl|lu|matrix_exp|pinv|qr|slogdet|solve|svd)\w*|cholesky_(inverse|solve)"
    r"|_cdist_forward|bmm|matmul"
)
# Operators that look each element up in a constant, which is this argument.
LOOKUPS = {"bucketize": 1, "embedding": 0, "index": 0, "searchsorted": 0}
# Pointwise operators that PyTorch does not tag as such. It has no rule of torch.vmap for fake quantisation.
UNTAGGED = {
    torch.ops.aten._to_copy,
    torch.ops.aten.hardswish,
    torch.ops.aten.log_sigmoid_forward,
    torch.ops.aten.fake_quantize_per_tensor_affine_cachemask,
}


@dataclass(frozen=True, eq=False)
class AtenCall:
    """A PyTorch operator with its constant arguments.

    Args:
        target: The operator.
        args: Its arguments, with a `Slot` for each input.
        kwargs: Likewise.
        results: Which of its results are used; None if it has only one.
        reason: Why it is kept, where a rule covers it with other arguments.
        exact: The same with constants as they were before they were rounded to its dtypes, such as 0.1 in torch.where.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int, ...] | None = None
    reason: str = ""
    exact: AtenCall | None = None

    @property
    def reads_memory(self) -> bool:
        """Whether it takes elements as they lie in memory: `as_strided`, and views as another dtype."""
        return bool(self.target.overloadpacket.__name__.startswith(("as_strided", "view")))

    @property
    def is_pointwise(self) -> bool:
        """Whether it computes each element of its result from those at the same place."""
        return torch.Tag.pointwise in self.target.tags or self.target.overloadpacket in UNTAGGED

    @property
    def dims(self) -> tuple[int, ...]:
        """Its argument `dim`; nothing where it has none, or takes all axes."""
        schema = self.target._schema.arguments
        given = {argument.name: argument.default_value for argument in schema}
        given |= dict(zip(given, self.args, strict=False)) | self.kwargs
        dim = given.get("dim", given.get("dims"))
        return (dim,) if isinstance(dim, int) else tuple(dim or ())

    @property
    def constants(self) -> list[Tensor]:
        """Its constant tensors."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    def runs_on_vectors(self, shapes: Sequence[tuple[int, ...]]) -> bool:
        """Whether it computes the same on flat vectors; `shapes` are those of its inputs and its results."""
        return self.is_pointwise and len(set(shapes)) == 1 and not self.constants

    def runs_on_batches(self, inputs: Sequence[tuple[int, ...]], results: Sequence[tuple[int, ...]]) -> bool:
        """Whether it takes a batch of any size as it takes a batch of one, of these shapes.

        Where their first axis is longer, as where a model joins samples and positions, the batch has these together.
        """
        axes, name = len(inputs[0]), self.target.overloadpacket.__name__
        if len(first := {shape[:1] for shape in (*inputs, *results)}) != 1 or not first.isdisjoint([(), (0,)]):
            return False
        if name in ALONG_DIM and self.dims:
            is_known = bool(self.constants) == (name == "index_select")  # its index is for all samples
            return is_known and all(dim % axes for dim in self.dims)
        if name in LOOKUPS:
            return {*map(len, inputs)} == {axes} and self._looks_up(LOOKUPS[name])
        if name == "_cdist_forward" and axes == 2:  # each row and the rows of a constant
            return isinstance(self.args[0], Slot) and [tensor.dim() for tensor in self.constants] == [2]
        if OF_MATRICES.fullmatch(name):
            # The vectors or the pivots of a batch of matrices have one axis less.
            others = [each for each in inputs if "solve" not in name or each != inputs[0][:-1]]
            return axes > 2 and {*map(len, others)} == {axes} and self._is_for_all(axes)
        if len({len(shape) for shape in (*inputs, *results)}) != 1:
            return False
        if self.is_pointwise:
            return self._is_for_all(axes)
        if name == "layer_norm":
            return len(self.args[1]) < axes
        if name == "pad":  # two numbers for each axis, from the last on
            return len(self.args[1]) < 2 * axes
        if name == "fake_quantize_per_channel_affine_cachemask":
            return bool(self.args[3] % axes != 0)
        if name == "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams":
            return True
        return axes > 2 and BATCHED.fullmatch(name) is not None and self._is_for_all(axes)

    def _is_for_all(self, axes: int) -> bool:
        """Whether its constant tensors are the same for all samples, where the inputs have this number of axes."""
        return all(tensor.dim() < axes or (tensor.dim() == axes and len(tensor) == 1) for tensor in self.constants)

    def _looks_up(self, place: int) -> bool:
        """Whether this argument is its only constant tensor, and each element is looked up in all of it."""
        table = self.args[place]
        if not isinstance(table, Tensor) or len(self.constants) != 1:
            return False
        if self.target.overloadpacket is torch.ops.aten.index:
            return isinstance(self.args[1][0], Slot)
        return self.target.overloadpacket is not torch.ops.aten.searchsorted or table.dim() == 1

    @property
    def meaning(self) -> tuple[Any, ...]:
        """What determines its results."""
        return self.target, self.args, self.kwargs, self.results

    @classmethod
    def of(cls, target: Any, args: Any, kwargs: Any) -> tuple[AtenCall, list[Value]]:
        """The operator and its inputs: the values among its arguments, each once."""
        inputs: list[Value] = []

        def slot(argument: Any) -> Any:
            if not isinstance(argument, Value):
                return argument
            if argument not in inputs:
                inputs.append(argument)
            return Slot(inputs.index(argument))

        args, kwargs = map_aggregate((args, kwargs), slot)
        return cls(target, args, kwargs), inputs

    def filled(self, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Its arguments, with inputs in their places."""
        args, kwargs = map_aggregate(
            (self.args, self.kwargs), lambda part: inputs[part.number] if isinstance(part, Slot) else part
        )
        return args, kwargs

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Its results that are used, for arrays as inputs, with float64 constants."""

        def widened(argument: Any) -> Any:
            is_floating = isinstance(argument, Tensor) and argument.is_floating_point()
            return argument.detach().double() if is_floating else argument

        args, kwargs = self.filled([torch.from_numpy(np.asarray(array, order="C")) for array in inputs])
        args, kwargs = map_aggregate((args, kwargs), widened)
        result = self.target(*args, **kwargs)
        return [(result if self.results is None else result[number]).numpy() for number in self.results or (0,)]


def written_arguments(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that an operator writes to: tensors, or lists of them."""
    return [args[place] if place < len(args) else kwargs.get(name) for place, name in _written(target)]


@functools.cache  # a schema makes its arguments anew each time
def _written(target: Any) -> tuple[tuple[int, str], ...]:
    arguments = enumerate(target._schema.arguments)
    return tuple((place, argument.name) for place, argument in arguments if argument.is_write)


def origin(node: fx.Node) -> str:
    """The module that a node comes from; the name of the node where that is the whole model."""
    modules = node.meta.get("nn_module_stack") or {"": ("", None)}
    return list(modules.values())[-1][0] or node.name


def operator_name(target: Any) -> str:
    """PyTorch's name of an operator, without its overload."""
    return str(target._schema.name).removeprefix("aten::")
