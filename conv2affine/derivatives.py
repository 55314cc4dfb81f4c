"""What PyTorch knows of the operators beside their kernels: shapes without data, derivatives, batches.

Each operator is linear in its first argument, and the adjoint of another one: so each is the other's gradient, and its
own derivative in forward mode, and it takes a batch of weights as more output channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function_unary

from conv2affine.extension import _C

__all__ = ["call", "is_transformed", "linear"]

Arguments = tuple[Any, ...]

OPERATORS = torch.ops.conv2affine
PLAIN = (Tensor, torch.nn.Parameter)
ADJOINTS = {"dense": "dense_adjoint", "values": "sparse_adjoint"}
MAPS = {adjoint: name for name, adjoint in ADJOINTS.items()}


def is_transformed() -> bool:
    """Whether torch.func or forward mode is at work.

    What is registered below serves backward and torch.compile; PyTorch 2.13 does not use it there, but refuses or takes
    the derivative for zero.
    """
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def linear(name: str, x: Tensor, *arguments: Any) -> Tensor:
    """An operator, differentiable under every transform of PyTorch."""
    if is_transformed():
        result: Tensor = _Linear.apply(x, name, arguments)  # type: ignore[no-untyped-call]
    else:
        result = call(name, x, *arguments)
    return result


def call(name: str, x: Tensor, *arguments: Any) -> Any:
    """An operator, as the dispatcher has it."""
    is_plain = type(x) in PLAIN and not has_torch_function_unary(x)  # else, sizes may be symbols
    if x.requires_grad or torch.compiler.is_compiling() or not is_plain:
        return getattr(OPERATORS, name).default(x, *arguments)
    # From C++ and below autograd, which is written in Python, a small matrix takes less than half of the time. Nothing
    # is lost: there is no gradient to record, and under a transform `linear` comes before this.
    return getattr(_C, name)(x, *arguments)


def adjoint(name: str, x_size: torch.Size, arguments: Arguments) -> tuple[str, Arguments]:
    """The operator and its arguments that are the adjoint of x -> name(x, *arguments)."""
    if name in ADJOINTS:
        return ADJOINTS[name], (list(x_size), *arguments)
    return MAPS[name], arguments[1:]


class _Linear(torch.autograd.Function):
    """x -> name(x, *arguments) for torch.func and forward mode."""

    @staticmethod
    def forward(x: Tensor, name: str, arguments: Arguments) -> Tensor:
        result: Tensor = call(name, x, *arguments)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str, Arguments], output: Tensor) -> None:
        x, ctx.name, ctx.arguments = inputs
        ctx.x_size = x.shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        name, arguments = adjoint(ctx.name, ctx.x_size, ctx.arguments)
        return linear(name, gradient, *arguments), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return linear(ctx.name, tangent, *ctx.arguments)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, ...], x: Tensor, name: str, arguments: Arguments) -> tuple[Tensor, int]:
        return batched(linear, name, x.movedim(in_dims[0], 0), arguments), 0


def batched(apply: Callable[..., Tensor], name: str, x: Tensor, arguments: Arguments) -> Tensor:
    """name(x[b], *arguments) for each b, in one call: apply(name, ...).

    The batch counts as more of the channels that rows are counted over. Those lie within their group, so that the rows
    of one b are together only where there is one group; else they are copied.
    """
    is_adjoint = name in MAPS
    weight_size, geometry, rule, row_start, row_stop, *flag = arguments if is_adjoint else (x.shape[1:], *arguments)
    transpose = flag == [True]
    channels = 2 if transpose else 1
    batch, groups, dims = len(x), weight_size[0], len(weight_size) - 3
    rows = groups * weight_size[channels] * prod(geometry[:dims] if transpose else geometry[dims : 2 * dims])
    whole = (geometry, rule, 0, batch * rows, *flag)
    # What belongs to [row_start, row_stop) of `total` rows; in a sparse matrix, entries take the place of rows.
    start, stop, total = row_start, row_stop, rows
    if flag:
        start, stop, total = (_entries(weight_size, geometry, rule, 0, row, transpose) for row in (start, stop, total))
    if not is_adjoint:
        weight = x.movedim(0, channels).flatten(channels, channels + 1)
        result = apply(name, weight, *whole)
        result = result.view(groups, batch, total // groups, *result.shape[1:])
        return result.transpose(0, 1).flatten(1, 2)[:, start:stop]
    padding = (0, 0) * (x.dim() - 2) + (start, total - stop)
    matrix = torch.nn.functional.pad(x, padding)
    matrix = matrix.reshape(batch, groups, total // groups, *matrix.shape[2:])
    more_channels = [size * batch if axis == channels else size for axis, size in enumerate(weight_size)]
    weight = apply(name, matrix.transpose(0, 1).flatten(0, 2), more_channels, *whole)
    return weight.view(*weight_size[:channels], batch, *weight_size[channels:]).movedim(channels, 0)


def _entries(
    weight_size: Sequence[int], geometry: list[int], rule: str, row_start: int, row_stop: int, transpose: bool
) -> int:
    """Entries in rows [row_start, row_stop); a number without a value where a size is one."""
    numbers = (*weight_size, *geometry, row_start, row_stop)
    if any(isinstance(number, torch.SymInt) for number in numbers):
        return torch.library.get_ctx().new_dynamic_size()  # type: ignore[return-value]
    return _C.entries(weight_size, geometry, rule, row_start, row_stop, transpose)


def _register(name: str) -> None:
    """The gradient and the batches of an operator that is linear and gives one tensor."""

    def setup_context(ctx: Any, inputs: Arguments, output: Tensor) -> None:
        ctx.adjoint = adjoint(name, inputs[0].shape, inputs[1:])
        ctx.others = len(inputs) - 1

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        adjoint_name, arguments = ctx.adjoint
        return linear(adjoint_name, gradient, *arguments), *(None,) * ctx.others

    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, *arguments: Any) -> tuple[Tensor, int]:
        return batched(call, name, x.movedim(in_dims[0], 0), arguments), 0

    torch.library.register_autograd(f"conv2affine::{name}", backward, setup_context=setup_context)
    torch.library.register_vmap(f"conv2affine::{name}", vmap)


for _name in (*ADJOINTS, *MAPS):
    _register(_name)


def _csr_context(ctx: Any, inputs: Arguments, output: tuple[Tensor, ...]) -> None:
    weight, *arguments = inputs
    geometry, rule, row_start, row_stop = arguments[:4]
    transpose = arguments[-1] is True  # coo has no such argument
    ctx.mark_non_differentiable(*output[:-1])
    ctx.arguments = (list(weight.shape), geometry, rule, row_start, row_stop, transpose)
    ctx.others = len(arguments)


def _csr_backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    return linear("sparse_adjoint", gradients[-1], *ctx.arguments), *(None,) * ctx.others


torch.library.register_autograd("conv2affine::csr", _csr_backward, setup_context=_csr_context)
torch.library.register_autograd("conv2affine::coo", _csr_backward, setup_context=_csr_context)


@torch.library.register_fake("conv2affine::dense")  # type: ignore[untyped-decorator]
def _dense_fake(weight: Tensor, geometry: list[int], rule: str, row_start: int, row_stop: int) -> Tensor:
    groups, _, in_group, *kernel_size = weight.shape
    return weight.new_empty(row_stop - row_start, groups * in_group * prod(geometry[: len(kernel_size)]))


@torch.library.register_fake("conv2affine::values")  # type: ignore[untyped-decorator]
def _values_fake(
    weight: Tensor, geometry: list[int], rule: str, row_start: int, row_stop: int, transpose: bool
) -> Tensor:
    return weight.new_empty(_entries(weight.shape, geometry, rule, row_start, row_stop, transpose))


@torch.library.register_fake("conv2affine::csr")  # type: ignore[untyped-decorator]
def _csr_fake(
    weight: Tensor,
    geometry: list[int],
    rule: str,
    row_start: int,
    row_stop: int,
    index_dtype: torch.dtype,
    transpose: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    nnz = _entries(weight.shape, geometry, rule, row_start, row_stop, transpose)
    starts = weight.new_empty(row_stop - row_start + 1, dtype=index_dtype)
    return starts, weight.new_empty(nnz, dtype=index_dtype), weight.new_empty(nnz)


@torch.library.register_fake("conv2affine::coo")  # type: ignore[untyped-decorator]
def _coo_fake(weight: Tensor, geometry: list[int], rule: str, row_start: int, row_stop: int) -> tuple[Tensor, Tensor]:
    nnz = _entries(weight.shape, geometry, rule, row_start, row_stop, False)
    return weight.new_empty(2, nnz, dtype=torch.int64), weight.new_empty(nnz)


@torch.library.register_fake("conv2affine::dense_adjoint")  # type: ignore[untyped-decorator]
def _dense_adjoint_fake(
    matrix: Tensor, weight_size: list[int], geometry: list[int], rule: str, row_start: int, row_stop: int
) -> Tensor:
    return matrix.new_empty(weight_size)


@torch.library.register_fake("conv2affine::sparse_adjoint")  # type: ignore[untyped-decorator]
def _sparse_adjoint_fake(
    values: Tensor,
    weight_size: list[int],
    geometry: list[int],
    rule: str,
    row_start: int,
    row_stop: int,
    transpose: bool,
) -> Tensor:
    return values.new_empty(weight_size)
