"""What PyTorch knows of the operators besides their kernels: derivatives, batches, and shapes without data.

The last output of every operator is linear in its first argument, and the other outputs do not depend on its values.
So the derivative in forward mode is the operator itself, in reverse mode its adjoint, and a batch of weights is one
weight of more channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import FunctionalizeInterpreter, retrieve_current_functorch_interpreter
from torch._subclasses.functional_tensor import FunctorchFunctionalizeAPI

from conv2affine.extension import _C
from conv2affine.ops import OPERATORS, Block, is_transformed

__all__ = ["is_transformed"]

INT32_MAX, INT64_MAX = 2**31 - 1, 2**63 - 1


class Linear(Protocol):
    """How the last output of an operator depends on its first argument."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """The output."""

    def adjoint(self, y: Tensor, /) -> Tensor:
        """The tensor like x with  sum(adjoint(y) * x) == sum(y * self(x))  for every x."""

    def batched(self, xs: Tensor, /) -> Tensor:
        """self(x) for each x of a batch, along axis 0."""

    def empty(self, x: Tensor, /) -> Tensor:
        """A tensor like the output, once the arguments are checked as the kernels check them."""


class _Matrix(NamedTuple):
    """Rows of the matrix of a weight: all elements, or its entries in order of rows or columns."""

    weight_size: Sequence[int]
    block: Block
    by_columns: bool | None = None  # None: all elements

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What operators take after the tensor and `weight_size`."""
        return self.block if self.by_columns is None else (*self.block, self.by_columns)

    @property
    def is_symbolic(self) -> bool:
        """Whether torch.compile knows some of the numbers by name only."""
        block = self.block
        numbers = (*self.weight_size, *block.geometry, block.row_start, block.row_stop)
        return any(isinstance(number, torch.SymInt) for number in numbers)

    @property
    def channels(self) -> int:
        """The axis of the weight with the channels that rows are counted over."""
        return 2 if self.by_columns else 1

    @property
    def rows(self) -> int:
        """All rows; input elements where entries are in order of columns."""
        positions = self.block.input_size if self.by_columns else self.block.output_size
        return self.weight_size[0] * self.weight_size[self.channels] * prod(positions)

    @property
    def columns(self) -> int:
        """All columns; output elements where entries are in order of columns."""
        positions = self.block.output_size if self.by_columns else self.block.input_size
        return self.weight_size[0] * self.weight_size[3 - self.channels] * prod(positions)

    def entries(self) -> int:
        """Number of entries; also checks the arguments."""
        if self.is_symbolic:
            return torch.library.get_ctx().new_dynamic_size()  # type: ignore[return-value]
        return _C.entries(self.weight_size, *self.block, bool(self.by_columns))

    def shape(self) -> tuple[int, ...]:
        """Shape of the dense matrix or of the values; also checks the arguments."""
        if self.by_columns is not None:
            return (self.entries(),)
        if not self.is_symbolic:
            self.entries()
        return self.block.row_stop - self.block.row_start, self.columns

    def repeated(self, batch: int) -> tuple[_Matrix, int, int, int]:
        """The whole matrix of `batch` weights as more channels; where in that of one this block starts, stops, it ends.

        The latter three count along axis 0 of the result: rows, or entries.
        """
        marks = [self.block.row_start, self.block.row_stop, self.rows]
        if self.by_columns is not None:
            before = (self.block._replace(row_start=0, row_stop=row) for row in marks)
            marks = [self._replace(block=block).entries() for block in before]
        size = list(self.weight_size)
        size[self.channels] *= batch
        block = self.block._replace(row_start=0, row_stop=batch * self.rows)
        start, stop, total = marks
        return self._replace(weight_size=size, block=block), start, stop, total


class ToMatrix(_Matrix):
    """From the weight to the dense matrix, or to the values of the sparse one."""

    def __call__(self, weight: Tensor) -> Tensor:
        operator = OPERATORS.dense if self.by_columns is None else OPERATORS.values
        matrix: Tensor = operator.default(weight, *self.arguments)
        return matrix

    def adjoint(self, matrix: Tensor) -> Tensor:
        return ToWeight(*self)(matrix)

    def batched(self, weights: Tensor) -> Tensor:
        batch, groups = weights.shape[0], self.weight_size[0]
        repeated, start, stop, total = self.repeated(batch)
        matrix = ToMatrix(*repeated)(weights.movedim(0, self.channels).flatten(self.channels, self.channels + 1))
        # Rows of one weight are contiguous only within a group.
        matrix = matrix.view(groups, batch, total // groups, *matrix.shape[1:])
        return matrix.transpose(0, 1).flatten(1, 2)[:, start:stop]

    def empty(self, weight: Tensor) -> Tensor:
        shape = self.shape()
        if self.by_columns is None:
            _check_bytes("the dense matrix", *shape, weight.itemsize)
        else:
            _check_bytes("the sparse matrix", *shape, 2, max(8, weight.itemsize))
        return weight.new_empty(shape)


class ToWeight(_Matrix):
    """The adjoint of `ToMatrix`."""

    def __call__(self, matrix: Tensor) -> Tensor:
        operator = OPERATORS.dense_adjoint if self.by_columns is None else OPERATORS.sparse_adjoint
        weight: Tensor = operator.default(matrix, self.weight_size, *self.arguments)
        return weight

    def adjoint(self, weight: Tensor) -> Tensor:
        return ToMatrix(*self)(weight)

    def batched(self, matrices: Tensor) -> Tensor:
        batch, groups = matrices.shape[0], self.weight_size[0]
        repeated, start, stop, total = self.repeated(batch)
        matrix = torch.nn.functional.pad(matrices, (0, 0) * (matrices.dim() - 2) + (start, total - stop))
        matrix = matrix.reshape(batch, groups, total // groups, *matrix.shape[2:]).transpose(0, 1).flatten(0, 2)
        weight = ToWeight(*repeated)(matrix)
        size = self.weight_size
        return weight.view(*size[: self.channels], batch, *size[self.channels :]).movedim(self.channels, 0)

    def empty(self, matrix: Tensor) -> Tensor:
        if not self.is_symbolic and matrix.shape != (shape := self.shape()):
            name, wanted = ("matrix", shape) if self.by_columns is None else ("values", f"({shape[0]})")
            raise ValueError(f"{name} must have shape {wanted}, got {list(matrix.shape)}")
        _check_bytes("the weight", *self.weight_size, matrix.itemsize)
        return matrix.new_empty(self.weight_size)


# From the size of the first argument and the other arguments of each operator.
LINEAR: dict[str, Callable[..., Linear]] = {
    "dense": lambda size, *block: ToMatrix(size, Block(*block)),
    "values": lambda size, *arguments: ToMatrix(size, Block(*arguments[:-1]), arguments[-1]),
    "csr": lambda size, *arguments: ToMatrix(size, Block(*arguments[:-2]), arguments[-1]),
    "coo": lambda size, *block: ToMatrix(size, Block(*block), False),
    "dense_adjoint": lambda _, size, *block: ToWeight(size, Block(*block)),
    "sparse_adjoint": lambda _, size, *arguments: ToWeight(size, Block(*arguments[:-1]), arguments[-1]),
}


class Operator(torch.autograd.Function):
    """An operator with its derivatives in both modes, and its batches."""

    @staticmethod
    def forward(name: str, x: Tensor, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return _overload(name)(x, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        name, x, *arguments = inputs
        patterns = output[:-1] if isinstance(output, tuple) else ()
        ctx.mark_non_differentiable(*patterns)
        ctx.linear, ctx.patterns, ctx.arguments = LINEAR[name](x.shape, *arguments), len(patterns), len(arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, ctx.linear.adjoint(gradients[-1]), *(None,) * ctx.arguments

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor, *__: None) -> Any:
        derivative = ctx.linear(tangent)
        return (*(None,) * ctx.patterns, derivative) if ctx.patterns else derivative

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], name: str, x: Tensor, *arguments: Any) -> tuple[Any, Any]:
        xs = x.movedim(in_dims[1], 0)
        batch = LINEAR[name](xs.shape[1:], *arguments).batched(xs)
        if name not in PATTERNS:
            return batch, 0
        *patterns, _ = _overload(name)(xs.new_empty(xs.shape[1:]), *arguments)
        return (*patterns, batch), (*(None,) * len(patterns), 0)


def _overload(name: str) -> Callable[..., Any]:
    overload: Callable[..., Any] = getattr(OPERATORS, name).default
    return overload


def _transformed(name: str, x: Tensor, *arguments: Any) -> Any:
    """An operator under the innermost transform of torch.func."""
    interpreter = retrieve_current_functorch_interpreter()
    if interpreter.key() != TransformType.Functionalize:
        return Operator.apply(name, x, *arguments)  # type: ignore[no-untyped-call]
    assert isinstance(interpreter, FunctionalizeInterpreter)
    functionalize = FunctorchFunctionalizeAPI(interpreter)  # PyTorch 2.13 has it for no autograd.Function
    plain = functionalize.unwrap_tensors(x)
    with functionalize.redispatch_to_next():
        result = _overload(name)(plain, *arguments)
    return functionalize.wrap_tensors(result)


def _fake(name: str, x: Tensor, *arguments: Any) -> Any:
    """Outputs without data."""
    linear = LINEAR[name](x.shape, *arguments)
    result = linear.empty(x)
    return (*PATTERNS[name](linear, result, *arguments), result) if name in PATTERNS else result


def _csr_pattern(matrix: _Matrix, values: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    index_dtype, rows, (nnz,) = arguments[-2], matrix.block.row_stop - matrix.block.row_start, values.shape
    if not matrix.is_symbolic:
        _check_index_dtype(index_dtype, nnz, rows, matrix.columns)
    _check_bytes("the row starts", rows + 1, index_dtype.itemsize)
    return values.new_empty(rows + 1, dtype=index_dtype), values.new_empty(nnz, dtype=index_dtype)


def _coo_pattern(_: _Matrix, values: Tensor, *__: Any) -> tuple[Tensor]:
    return (values.new_empty(2, *values.shape, dtype=torch.int64),)


# The outputs before the last of the operators that have some, without data.
PATTERNS: dict[str, Callable[..., tuple[Tensor, ...]]] = {"csr": _csr_pattern, "coo": _coo_pattern}


def _check_bytes(what: str, *factors: int) -> None:
    if not any(isinstance(factor, torch.SymInt) for factor in factors) and prod(factors) > INT64_MAX:
        raise ValueError(
            f"the number of bytes of {what} (product of {list(factors)}) must fit into a signed 64-bit integer"
        )


def _check_index_dtype(index_dtype: torch.dtype, nnz: int, rows: int, cols: int) -> None:
    if index_dtype not in (torch.int32, torch.int64):
        raise ValueError(f"index_dtype ({index_dtype}) must be int32 or int64")
    if index_dtype is torch.int32 and max(nnz, rows, cols) > INT32_MAX:
        raise ValueError(
            f"index_dtype int32 counts to {INT32_MAX}, too few for {nnz} entries in {rows} rows and {cols} columns; "
            "use int64, or a block of rows"
        )


LIBRARY = torch.library.Library("conv2affine", "IMPL")  # type: ignore[no-untyped-call]
for _name in LINEAR:
    torch.library.register_fake(f"conv2affine::{_name}", partial(_fake, _name), lib=LIBRARY)
    # The second is above the kernels of torch.func, which refuse, or take a derivative that they do not know for zero.
    for _key, _kernel in (("Autograd", Operator.apply), ("FuncTorchDynamicLayerFrontMode", _transformed)):
        LIBRARY.impl(_name, partial(_kernel, _name), _key)  # type: ignore[no-untyped-call]
