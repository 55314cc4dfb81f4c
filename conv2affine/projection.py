"""The way back: from a matrix to the weight of the convolution that is nearest to it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from conv2affine.convolution.geometry import Geometry
from conv2affine.convolution.layouts import BUILDERS
from conv2affine.operators import ops
from conv2affine.operators.extension import _C

__all__ = ["check_matrix", "from_matrix"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
# Elements, or entries, that are read at a time: few enough for the cache, enough to hide the cost of the calls.
# A float32 matrix of 512 MB took 0.18 s; 0.3 s with blocks of a quarter, 0.4 s with blocks 16 times as large.
BLOCK_ELEMENTS = 2**18
# An eigenvalue counts as 0 below this part of the largest one. Over 6,000 random axes, those that are 0 came out below
# 1e-15 and the others above 4e-4. The more outputs read the border, the smaller an eigenvalue that is not 0 can be.
RANK_TOLERANCE = 1e-12


@torch.no_grad()
def from_matrix(matrix: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """The convolution nearest to a matrix: its weight, and how far from the matrix it is.

        weight   = argmin over w of  || A(w) - matrix ||_F
        residual = || A(weight) - matrix ||_F

    Each element of the weight is the mean of the entries that it fills. Where a padding mode lets two taps read one
    input, a small system of equations is solved along each axis. Of several minima it is the one of the least norm: an
    element that fills no entry is 0.

    For the matrix of a convolution this is its weight: exactly where no taps overlap, except that -0.0 comes back as
    0.0, and up to rounding where they do. This needs sums that float64 can hold: an element that fills n entries must
    be smaller than 1.8e308 / n. Beyond that, it is infinite or NaN, and so is the residual.

    Args:
        matrix: The matrix, of shape `geometry.shape`, floating or complex; dense, or sparse with layout
            `torch.sparse_csr`, `torch.sparse_csc` or `torch.sparse_coo` and any pattern.
        geometry: The convolution that it should equal.

    Returns:
        (weight, residual). The weight has shape `geometry.weight_size`, dtype and device of the matrix, and new memory;
        element [co, ci, *k], or [ci, co, *k] if transposed, is as in the layer. The residual is a 0-dim float64 tensor:
        the Frobenius norm of what no convolution of this geometry can express, and of the rounding of the weight.
        Neither has a gradient. Everything is computed in float64 or complex128.

        Besides the result, a dense matrix takes a few MB, and the memory of a few weights in float64. A sparse one is
        never made dense; it takes up to 35 (COO), 50 (CSR) or 64 (CSC) bytes per entry, measured in float32 and
        float64.

    Raises:
        TypeError: If `matrix` is not a tensor of such a dtype and layout, or `geometry` not a `Geometry`.
        ValueError: If the matrix does not have shape `geometry.shape`.

    Example:
        >>> matrix = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 2.0]])
        >>> from_matrix(matrix, Geometry(1, 1, kernel_size=(2,), input_size=3))
        (tensor([[[2., 2.]]]), tensor(1.4142, dtype=torch.float64))
    """
    check_matrix("matrix", matrix, geometry)
    wide = torch.promote_types(matrix.dtype, torch.float64)
    inverses = [inverse.to(matrix.device, wide) for inverse in _inverse_grams(geometry)]
    source = _Dense(matrix, geometry) if matrix.layout is torch.strided else _Sparse(matrix, geometry, wide)
    solution = torch.zeros(geometry.weight_size, dtype=wide, device=matrix.device)
    # In float64, a sum of n equal float32 numbers is exact. A sum of float64 numbers is rounded: the second round sums
    # what is missing, a few units in the last place, and this sum is exact.
    for _ in range(2 if matrix.dtype == wide else 1):
        correction = source.adjoint(solution)
        for axis, inverse in enumerate(inverses, start=2):
            correction = torch.tensordot(correction, inverse, dims=([axis], [0])).movedim(-1, axis)
        solution += correction
    weight = solution.to(matrix.dtype)
    return weight, source.distance(weight.to(wide))


class _Dense:
    """A dense matrix M, read by blocks of its rows, so that no second matrix in float64 is needed."""

    def __init__(self, matrix: Tensor, geometry: Geometry) -> None:
        self.matrix, self.geometry = matrix, geometry

    def adjoint(self, weight: Tensor) -> Tensor:
        """The adjoint of M - A(weight)."""
        total = torch.zeros_like(weight)
        for row_start, difference in self._differences(weight):
            total += ops.dense_adjoint(difference, self.geometry, row_start)
        return total

    def distance(self, weight: Tensor) -> Tensor:
        """|| M - A(weight) ||_F."""
        norms = [torch.linalg.vector_norm(difference) for _, difference in self._differences(weight)]
        distance: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return distance

    def _differences(self, weight: Tensor) -> Iterator[tuple[int, Tensor]]:
        rows, cols = self.geometry.shape
        # Each block gives a whole weight, so it is at least as large as the weight.
        step = max(1, max(BLOCK_ELEMENTS, weight.numel()) // cols)
        for start in range(0, rows, step):
            block = self.matrix[start : start + step]
            convolution = ops.dense(weight, self.geometry, start, start + len(block))
            yield start, torch.sub(block.to(weight.dtype), convolution, out=convolution)


class _Sparse:
    """A sparse matrix M: its values where the convolution has entries, and the norm of all others."""

    def __init__(self, matrix: Tensor, geometry: Geometry, wide: torch.dtype) -> None:
        self.geometry = geometry
        rows, cols = geometry.shape
        entries = matrix.to_sparse(layout=torch.sparse_coo).coalesce()
        # One number per (row, col), in the order of the elements; Geometry has checked that 64 bits are enough.
        keys, numbers = entries.indices()[0] * cols + entries.indices()[1], entries.values()
        nothing = torch.zeros((), dtype=torch.uint8, device=keys.device).expand(geometry.weight_size)
        step = max(1, BLOCK_ELEMENTS * rows // max(1, ops.nnz(geometry, range(rows))))
        inside, outside = [], []
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            row, col = ops.coo(nothing, geometry, start, stop)[0]
            # A search that finds nothing ends at the last key, which is larger than all others.
            ours = torch.cat([(row + start) * cols + col, keys.new_tensor([stop * cols])])
            first, last = torch.searchsorted(keys, keys.new_tensor([start * cols, stop * cols])).tolist()
            theirs, values = keys[first:last], numbers[first:last].to(wide)
            place = torch.searchsorted(ours, theirs)
            found = ours[place] == theirs
            inside.append(values.new_zeros(len(ours) - 1).index_put_((place[found],), values[found]))
            outside.append(torch.linalg.vector_norm(values[~found]))
        self.values = torch.cat(inside)
        self.outside = torch.linalg.vector_norm(torch.stack(outside))

    def adjoint(self, weight: Tensor) -> Tensor:
        """The adjoint of M - A(weight)."""
        return ops.sparse_adjoint(self._difference(weight), self.geometry)

    def distance(self, weight: Tensor) -> Tensor:
        """|| M - A(weight) ||_F."""
        return torch.hypot(torch.linalg.vector_norm(self._difference(weight)), self.outside)

    def _difference(self, weight: Tensor) -> Tensor:
        convolution = ops.values(weight, self.geometry)
        return torch.sub(self.values, convolution, out=convolution)


def _inverse_grams(geometry: Geometry) -> Iterator[Tensor]:
    """For each axis, the pseudo-inverse of its Gram matrix of taps.

        G[k, k'] = number of (o, i) with tap(o, k) == i == tap(o, k')

    The normal equations of the least-squares problem are G_1 x ... x G_D (Kronecker), for each pair of channels; the
    pseudo-inverse of a Kronecker product is that of its factors.
    """
    numbers, padding_mode, transposed = geometry.operator_arguments()
    dims = len(geometry.kernel_size)
    sizes = [numbers[start : start + dims] for start in range(0, len(numbers), dims)]
    for kernel, input, output, stride, padding, dilation in zip(geometry.kernel_size, *sizes, strict=True):
        axis = (input, output, kernel, stride, padding, dilation)
        start, inputs, taps = map(torch.from_numpy, _C.axis_taps(*axis, padding_mode, transposed))
        outputs = torch.repeat_interleave(start.diff())
        key, gram = outputs * input + inputs, torch.zeros(kernel, kernel, dtype=torch.float64, device="cpu")
        # The taps through which an output reads the same input are contiguous, in ascending order.
        for distance in range(kernel):
            first, second = slice(0, max(0, len(key) - distance)), slice(distance, None)
            same = key[first] == key[second]
            if not same.any():
                break
            pairs = taps[first][same] * kernel + taps[second][same]
            gram += pairs.bincount(minlength=kernel**2).view(kernel, kernel)
        counts = gram.diag()
        if torch.equal(gram, counts.diag()):  # no overlap: the result is exact, whatever LAPACK does
            yield torch.where(counts > 0, 1 / counts, 0.0).diag()
        else:
            gram += gram.triu(1).T
            yield torch.linalg.pinv(gram, rtol=RANK_TOLERANCE, hermitian=True)


def check_matrix(name: str, matrix: object, geometry: object) -> None:
    """Refuse what is not a matrix of this geometry."""
    if not isinstance(geometry, Geometry):
        raise TypeError(
            f"geometry must be a conv2affine.Geometry, got {type(geometry).__name__}; make it of a layer with "
            "Geometry.from_layer(conv, input_size)"
        )
    if not isinstance(matrix, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(matrix).__name__}; pass torch.as_tensor({name})")
    if matrix.layout not in BUILDERS:
        raise TypeError(
            f"{name} must have a layout of {', '.join(map(str, BUILDERS))}, got {matrix.layout}; convert it with "
            "to_sparse_csr() or to_dense()"
        )
    if matrix.dtype not in DTYPES:
        raise TypeError(
            f"{name} must have a dtype of {', '.join(map(str, DTYPES))}, because means are not integers, got "
            f"{matrix.dtype}; convert it with double()"
        )
    if matrix.shape != geometry.shape:
        raise ValueError(
            f"{name} must have shape {geometry.shape}, that of geometry: {geometry.out_channels} channels of size "
            f"{geometry.output_size} by {geometry.in_channels} of {geometry.input_size}; got {tuple(matrix.shape)}"
        )
    if matrix.layout is torch.sparse_coo and matrix.sparse_dim() != 2:
        raise ValueError(
            f"{name} must have 2 sparse axes, got {matrix.sparse_dim()} and dense rows; convert it with to_dense()"
        )
