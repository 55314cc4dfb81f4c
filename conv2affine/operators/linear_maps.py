"""What the operators compute, as linear maps of the first argument: from the weight to a matrix, and back.

Besides the output, each gives three things:

    adjoint(y)     the tensor like x with  sum(adjoint(y) * x) == sum(y * self(x))  for every x
    batched(xs)    self(x) for each x of a batch, along axis 0
    empty(x)       a tensor like the output, once the arguments are checked as the kernels check them
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from conv2affine.convolution.arguments import INT64_MAX
from conv2affine.operators.extension import _C

OPERATORS = torch.ops.conv2affine


class Block(NamedTuple):
    """Rows [row_start, row_stop) of the matrix of a convolution; named and ordered as in the schemas of the operators.

    For what the other fields are, see csrc/convolution.h.
    """

    geometry: Sequence[int]
    padding_mode: str
    transposed: bool
    row_start: int
    row_stop: int

    @property
    def convolution(self) -> tuple[Sequence[int], str, bool]:
        """The fields that say which convolution it is."""
        return self[:-2]

    @property
    def input_size(self) -> Sequence[int]:
        return self.geometry[: len(self.geometry) // 5]

    @property
    def output_size(self) -> Sequence[int]:
        dims = len(self.geometry) // 5
        return self.geometry[dims : 2 * dims]


class MatrixArguments(NamedTuple):
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

    def nnz(self) -> int:
        """Number of entries; also checks the arguments."""
        if self.is_symbolic:
            return torch.library.get_ctx().new_dynamic_size()  # type: ignore[return-value]
        return _C.nnz(self.weight_size, *self.block, bool(self.by_columns))

    def shape(self) -> tuple[int, ...]:
        """Shape of the dense matrix or of the values; also checks the arguments."""
        if self.by_columns is not None:
            return (self.nnz(),)
        if not self.is_symbolic:
            self.nnz()
        return self.block.row_stop - self.block.row_start, self.columns

    def repeated(self, batch: int) -> tuple[MatrixArguments, int, int, int]:
        """The whole matrix of `batch` weights as more channels; where in that of one this block starts, stops, it ends.

        The latter three count along axis 0 of the result: rows, or entries.
        """
        marks = [self.block.row_start, self.block.row_stop, self.rows]
        if self.by_columns is not None:
            before = (self.block._replace(row_start=0, row_stop=row) for row in marks)
            marks = [self._replace(block=block).nnz() for block in before]
        size = list(self.weight_size)
        size[self.channels] *= batch
        block = self.block._replace(row_start=0, row_stop=batch * self.rows)
        start, stop, total = marks
        return self._replace(weight_size=size, block=block), start, stop, total


class ToMatrix(MatrixArguments):
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
            check_bytes("the dense matrix", *shape, weight.itemsize)
        else:
            check_bytes("the sparse matrix", *shape, 2, max(8, weight.itemsize))
        return weight.new_empty(shape)


class ToWeight(MatrixArguments):
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
        check_bytes("the weight", *self.weight_size, matrix.itemsize)
        return matrix.new_empty(self.weight_size)


class ToBias(NamedTuple):
    """From one entry per channel to one per row: `bias`."""

    bias_size: Sequence[int]
    outputs: int

    def __call__(self, bias: Tensor) -> Tensor:
        rows: Tensor = OPERATORS.bias.default(bias, self.outputs)
        return rows

    def adjoint(self, rows: Tensor) -> Tensor:
        return rows.reshape(*self.bias_size, self.outputs).sum(1)

    def batched(self, biases: Tensor) -> Tensor:
        return self(biases.flatten()).view(biases.shape[0], -1)

    def empty(self, bias: Tensor) -> Tensor:
        if bias.dim() != 1:
            raise ValueError(f"bias must have shape (channels), got {list(bias.shape)}")
        if self.outputs < 1:
            raise ValueError(f"outputs ({self.outputs}) must be >= 1")
        check_bytes("the bias", *self.bias_size, self.outputs, bias.itemsize)
        return bias.new_empty(bias.shape[0] * self.outputs)


# From the size of the first argument and the other arguments of each operator.
LINEAR: dict[str, Callable[..., ToMatrix | ToWeight | ToBias]] = {
    "dense": lambda size, *block: ToMatrix(size, Block(*block)),
    "values": lambda size, *arguments: ToMatrix(size, Block(*arguments[:-1]), arguments[-1]),
    "csr": lambda size, *arguments: ToMatrix(size, Block(*arguments[:-2]), arguments[-2]),
    "coo": lambda size, *block: ToMatrix(size, Block(*block), False),
    "bias": lambda size, outputs: ToBias(size, outputs),
    "dense_adjoint": lambda _, size, *block: ToWeight(size, Block(*block)),
    "sparse_adjoint": lambda _, size, *arguments: ToWeight(size, Block(*arguments[:-1]), arguments[-1]),
}


def check_bytes(what: str, *factors: int) -> None:
    """Raise the ValueError of the kernels where the product does not fit into 64 bits."""
    if not any(isinstance(factor, torch.SymInt) for factor in factors) and prod(factors) > INT64_MAX:
        raise ValueError(
            f"the number of bytes of {what} (product of {list(factors)}) must fit into a signed 64-bit integer"
        )
