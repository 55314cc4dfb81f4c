"""The matrices of layers: a convolution, equal blocks along a diagonal, and products of one matrix for each axis."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from math import prod
from typing import Any

import numpy as np
import scipy.sparse
import torch
from scipy.sparse import csr_array
from torch import Tensor

from conv2affine.convolution.geometry import Geometry
from conv2affine.convolution.product import adjoint, forward, in_chunks
from conv2affine.matrix import to_matrix
from conv2affine.network.matrices.matrix import Array, Matrix, Sparse
from conv2affine.network.matrices.pattern import Pattern, places

# Of a weight that is converted to float64 at a time.
PART_ELEMENTS = 2**24


@dataclass(frozen=True, eq=False)
class Convolution(Matrix):
    """A convolution that pads with zeros, kept as its weight; a fully-connected layer is one of size 1.

    Args:
        weight: As in `F.conv2d`, or `F.conv_transpose2d`.
        geometry: The conversion.
        copied: Whether the weight is a parameter of the model as it is.
    """

    weight: Tensor
    geometry: Geometry
    copied: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        return self.geometry.shape

    @property
    def numbers(self) -> tuple[Any, ...]:
        return (self.weight.detach(),)

    def apply(self, x: Array) -> Array:
        g = self.geometry
        batch = torch.from_numpy(np.ascontiguousarray(x)).view(len(x), g.in_channels, *g.input_size)
        return torch.cat([part.product(batch).flatten(1) for part in self.parts()], 1).numpy()

    def product(self, batch: Tensor) -> Tensor:
        """The convolution of a batch, in float64."""
        g, weight = self.geometry, self.weight.detach().double()
        return in_chunks(lambda each: forward(each, weight, g), batch, weight)

    def parts(self) -> list[Convolution]:
        """The same by some output channels at a time, for a weight that is large in float64."""
        g, weight = self.geometry, self.weight.detach()
        if weight.numel() <= PART_ELEMENTS or g.groups != 1 or g.transposed:
            return [self]
        parts = torch.split(weight, max(1, PART_ELEMENTS // weight[0].numel()))
        return [Convolution(part, dataclasses.replace(g, out_channels=len(part))) for part in parts]

    def apply_transposed(self, y: Array) -> Array:
        g = self.geometry
        if prod(self.shape) <= self.weight.numel() * min(prod(g.input_size), prod(g.output_size)):
            # Small inputs: the matrix has no more elements than the convolution has products.
            return (torch.from_numpy(y) @ self.tensor(torch.float64, torch.strided)).numpy()
        batch = torch.from_numpy(np.ascontiguousarray(y)).view(len(y), g.out_channels, *g.output_size)
        weight = self.weight.detach().double()
        return in_chunks(lambda each: adjoint(each, weight, g), batch, weight).flatten(1).numpy()

    def tensor(self, dtype: torch.dtype, layout: torch.layout) -> Tensor:
        """The matrix as a tensor."""
        return to_matrix(self.weight.detach().to(dtype), self.geometry, layout=layout)

    def csr(self, dtype: Any = np.float64) -> csr_array:
        return _csr(self.weight.detach().to(torch.from_numpy(np.empty(0, dtype)).dtype), self.geometry)

    @cached_property
    def pattern(self) -> Pattern:  # type: ignore[override]
        g = self.geometry
        sizes = g.kernel_size, g.input_size, g.stride, g.padding, g.dilation, g.output_padding
        axes = tuple(_line(g.transposed, *line) for line in zip(*sizes, strict=True))
        return Pattern(g.groups, g.out_channels // g.groups, g.in_channels // g.groups, axes)


@dataclass(frozen=True, eq=False)
class Repeated(Matrix):
    """One layer of many rows, or of many samples in one: identity (x) block. They share its weight.

    Args:
        block: The layer.
        times: Number of rows or samples.
    """

    block: Convolution
    times: int

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.block.shape
        return self.times * rows, self.times * cols

    @property
    def copied(self) -> bool:  # type: ignore[override]
        return self.block.copied

    @property
    def numbers(self) -> tuple[Any, ...]:
        return self.block.numbers

    def apply(self, x: Array) -> Array:
        each = self.block.apply(x.reshape(len(x) * self.times, self.block.shape[1]))
        return each.reshape(len(x), self.shape[0])

    def apply_transposed(self, y: Array) -> Array:
        each = self.block.apply_transposed(y.reshape(len(y) * self.times, self.block.shape[0]))
        return each.reshape(len(y), self.shape[1])

    def tensor(self, dtype: torch.dtype) -> Tensor:
        """The dense matrix."""
        block = self.block.tensor(dtype, torch.strided)
        rows, cols = block.shape
        whole = torch.zeros(self.times, rows, self.times, cols, dtype=dtype, device=block.device)
        whole.diagonal(dim1=0, dim2=2).copy_(block[:, :, None])
        return whole.view(self.shape)

    def csr(self, dtype: Any = np.float64) -> csr_array:
        block = self.block.csr(dtype)
        index: Any = np.int32 if max(self.times * block.nnz, *self.shape) < 2**31 else np.int64
        copies = np.arange(self.times, dtype=index)
        columns = np.add.outer(copies * block.shape[1], block.indices).ravel()
        starts = np.zeros(self.shape[0] + 1, index)
        np.add.outer(copies * block.nnz, block.indptr[1:], out=starts[1:].reshape(self.times, -1))
        matrix = csr_array((np.tile(block.data, self.times), columns, starts), shape=self.shape)
        matrix.has_sorted_indices = True  # so that SciPy does not check
        return matrix

    @cached_property
    def pattern(self) -> Pattern:  # type: ignore[override]
        return dataclasses.replace(self.block.pattern, groups=self.times * self.block.pattern.groups)


def repeated(block: Convolution, times: int) -> Convolution | Repeated:
    """A block-diagonal matrix of `times` equal blocks."""
    return block if times == 1 else Repeated(block, times)


@dataclass(frozen=True, eq=False)
class Separable(Matrix):
    """The same on each channel, an axis at a time: identity (x) axes[0] (x) axes[1] ...

    Args:
        channels: Of the input and of the output.
        axes: (output size, input size) for each axis.
    """

    channels: int
    axes: tuple[csr_array, ...]

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = (self.channels * prod(axis.shape[side] for axis in self.axes) for side in (0, 1))
        return rows, cols

    @property
    def numbers(self) -> tuple[Any, ...]:
        return tuple(axis.data for axis in self.axes)

    def apply(self, x: Array) -> Array:
        y = x.reshape(-1, *(axis.shape[1] for axis in self.axes))
        for number, axis in enumerate(self.axes, 1):
            first = np.moveaxis(y, number, 0)
            y = np.moveaxis((axis @ first.reshape(len(first), -1)).reshape(-1, *first.shape[1:]), 0, number)
        return y.reshape(len(x), -1)

    @cached_property
    def channel(self) -> Sparse:
        """The matrix of one channel."""
        return Sparse(Separable(1, self.axes).csr())

    def csr(self, dtype: Any = np.float64) -> csr_array:
        identity = scipy.sparse.eye_array(self.channels, format="csr")
        matrix = csr_array(reduce(lambda a, b: scipy.sparse.kron(a, b, format="csr"), self.axes, identity))
        matrix.sort_indices()
        return matrix.astype(dtype)

    @cached_property
    def pattern(self) -> Pattern:  # type: ignore[override]
        return Pattern(self.channels, 1, 1, tuple(places(axis) for axis in self.axes))


def _csr(weight: Tensor, geometry: Geometry) -> csr_array:
    return to_csr_array(to_matrix(weight, geometry, layout=torch.sparse_csr))


def to_csr_array(matrix: Tensor) -> csr_array:
    """A CSR tensor in the same memory, its columns ascending."""
    parts = tuple(part.numpy() for part in (matrix.values(), matrix.col_indices(), matrix.crow_indices()))
    csr = csr_array(parts, shape=tuple(matrix.shape))
    csr.has_sorted_indices = True  # so that SciPy does not check
    return csr


@lru_cache(maxsize=64)  # the axes of a network are few
def _line(
    transposed: bool, kernel: int, size: int, stride: int, padding: tuple[int, int], dilation: int, output_padding: int
) -> csr_array:
    """Where the matrix along one axis has entries."""
    line = Geometry(
        1,
        1,
        (kernel,),
        input_size=(size,),
        stride=(stride,),
        padding=(padding,),
        dilation=(dilation,),
        output_padding=(output_padding,),
        transposed=transposed,
    )
    return places(_csr(torch.ones(1, 1, kernel), line))
