"""A convolution for SciPy: as an operator, which never forms the matrix, and as a sparse array."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from conv2affine.convolution.arguments import Conv, InputSize
from conv2affine.convolution.build import checked_request
from conv2affine.convolution.geometry import Geometry
from conv2affine.convolution.layouts import csr_arrays
from conv2affine.convolution.parameters import read
from conv2affine.convolution.product import adjoint, forward

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import LinearOperator

OPERATOR_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
ARRAY_DTYPES = (
    *OPERATOR_DTYPES,
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)
# The largest buffer into which PyTorch may unfold a block of vectors. The bound costs no time: the C library returns
# larger buffers to the system, and 32 vectors of a 3x3 layer of 64 channels at 56 x 56 took 0.18 s in blocks of 115 MB,
# 0.10 s in blocks of 29 MB.
BLOCK_BYTES = 2**25


def as_linear_operator(conv: Conv | Tensor, input_size: InputSize | Geometry) -> LinearOperator:
    """The matrix A of a convolution layer as a SciPy operator that convolves and never forms the matrix.

        A @ flatten(x)   == flatten(conv(x)) - b
        A.H @ flatten(y) == the transposed convolution of y, which PyTorch's backward gives

    It serves solvers that need only products: `scipy.sparse.linalg.svds`, `lsqr`, `lsmr`, `eigsh(A.H @ A)`.

    Args:
        conv: A convolution layer, or the weight of one, as in `to_matrix`, of dtype float32, float64, complex64 or
            complex128.
        input_size: (I_1, ..., I_D), as in `x.shape[-D:]`, or one int for all axes, or an example input; with a weight,
            a `Geometry`.

    Returns:
        A `LinearOperator` of the matrix's shape and of the weight's dtype, with `matvec`, `rmatvec`, `matmat` and
        `rmatmat`. The weight is copied: later changes of the layer do not reach the operator. Vectors are NumPy arrays,
        counted in C order over (channel, *position). They are converted to the operator's dtype, which is that of the
        results, and convolved on the weight's device; a complex vector gives a complex result, whatever the weight.

    Raises:
        TypeError: As `to_matrix`; or if the dtype is none of these four.
        ValueError: As `to_matrix`; or if the weight is on the meta device.

    Example:
        >>> from scipy.sparse.linalg import svds
        >>> from conv2affine import to_matrix
        >>> conv = torch.nn.Conv2d(3, 64, 7, stride=2, padding=3)
        >>> A = as_linear_operator(conv, 224)
        >>> A.shape  # 483 GB as a matrix
        (802816, 150528)
        >>> A = as_linear_operator(conv.double(), 8)
        >>> bool(np.isclose(svds(A, k=1)[1], torch.linalg.matrix_norm(to_matrix(conv, 8), 2).item()))
        True
    """
    from scipy.sparse.linalg import LinearOperator

    weight, geometry = scipy_weight(conv, input_size, "solvers", OPERATOR_DTYPES)
    weight = weight.clone(memory_format=torch.contiguous_format)
    inputs, outputs = (geometry.in_channels, *geometry.input_size), (geometry.out_channels, *geometry.output_size)
    product = partial(_columns, forward, weight, geometry, inputs)
    transposed = partial(_columns, adjoint, weight, geometry, outputs)
    dtype = np.dtype(str(weight.dtype).removeprefix("torch."))
    return LinearOperator(
        geometry.shape, matvec=product, rmatvec=transposed, matmat=product, rmatmat=transposed, dtype=dtype
    )


def to_scipy(
    conv: Conv | Tensor,
    input_size: InputSize | Geometry,
    *,
    index_dtype: torch.dtype | None = None,
    rows: range | None = None,
    drop_zeros: bool = False,
) -> csr_array:
    """The matrix A of a convolution layer as a SciPy sparse array.

        A[(co, o), (ci, i)] = sum over taps k with tap(o, k) == i of  w[co, ci, k]

    Args:
        conv: A convolution layer, or the weight of one, as in `to_matrix`, of any dtype that NumPy has, except float16.
        input_size: (I_1, ..., I_D), as in `x.shape[-D:]`, or one int for all axes, or an example input; with a weight,
            a `Geometry`.
        index_dtype: As in `to_matrix`.
        rows: As in `to_matrix`.
        drop_zeros: As in `to_matrix`.

    Returns:
        A `csr_array` of shape (len(rows), in_channels * prod(input_size)) and of the weight's dtype, in the memory that
        the operator filled: nothing is copied, except from a GPU. Element [r, c] is that of `to_matrix`. It has no
        gradient.

    Raises:
        TypeError: As `to_matrix`; or if SciPy's sparse arrays do not have the weight's dtype.
        ValueError: As `to_matrix`; or if the weight is on the meta device.
        MemoryError: As `to_matrix`.

    Example:
        >>> conv = torch.nn.Conv1d(1, 1, 2, bias=False).requires_grad_(False)
        >>> _ = conv.weight.copy_(torch.tensor([[[1.0, 2.0]]]))
        >>> to_scipy(conv, 3).toarray()
        array([[1., 2., 0.],
               [0., 1., 2.]], dtype=float32)
    """
    from scipy.sparse import csr_array

    weight, geometry = scipy_weight(conv, input_size, "sparse arrays", ARRAY_DTYPES)
    request = checked_request(weight, geometry, torch.sparse_csr, rows, index_dtype, drop_zeros)
    starts, indices, values = (part.cpu().numpy() for part in csr_arrays(weight, geometry, request))
    return csr_array((values, indices, starts), shape=(len(request.rows), geometry.shape[1]))


def _columns(
    function: Callable[[Tensor, Tensor, Geometry], Tensor],
    weight: Tensor,
    geometry: Geometry,
    shape: tuple[int, ...],
    x: NDArray[Any],
) -> NDArray[Any]:
    """`function`, `forward` or `adjoint`, of each column of x as a sample of this shape; or of the vector x."""
    if np.iscomplexobj(x) and not weight.is_complex():
        real, imag = (_columns(function, weight, geometry, shape, part) for part in (x.real, x.imag))
        return real + 1j * imag
    dtype = np.dtype(str(weight.dtype).removeprefix("torch."))
    samples = np.array(x.reshape(prod(shape), -1).T, dtype, order="C")  # a copy: x may be read-only
    batch = torch.from_numpy(samples).to(weight.device).view(len(samples), *shape)
    with torch.no_grad(), torch.autocast(batch.device.type, enabled=False):
        blocks = torch.split(batch, _block(weight, geometry))
        results = [function(block, weight, geometry).flatten(1) for block in blocks]
    return torch.cat(results).cpu().numpy().T


def _block(weight: Tensor, geometry: Geometry) -> int:
    """Samples to convolve at once."""
    # PyTorch unfolds into one element per channel, tap and window; the windows are the outputs of a convolution.
    windows = (geometry.in_channels, *geometry.output_size)
    if geometry.transposed:
        windows = (geometry.out_channels, *geometry.input_size)
    return max(1, BLOCK_BYTES // (prod(geometry.kernel_size) * prod(windows) * weight.itemsize))


def scipy_weight(
    conv: Conv | Tensor, input_size: InputSize | Geometry, user: str, dtypes: tuple[torch.dtype, ...]
) -> tuple[Tensor, Geometry]:
    """The weight, without gradient, and the geometry, if SciPy can work with them."""
    with torch.no_grad():
        weight, _, geometry = read(conv, input_size)
    name = "weight" if isinstance(conv, Tensor) else "conv.weight"
    if weight.dtype not in dtypes:
        raise TypeError(
            f"{name} must have a dtype of SciPy's {user}, {', '.join(map(str, dtypes))}, got {weight.dtype}; "
            "convert it with float() or double()"
        )
    if weight.is_meta:
        raise ValueError(
            f"{name} must have elements, and on the meta device it has none; move it with to_empty(device='cpu') and "
            "load its elements, or call plan"
        )
    return weight.detach(), geometry
