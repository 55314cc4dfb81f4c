"""The way back: from a matrix to the convolution that is nearest to it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from conv2affine import ops
from conv2affine.checks import LAYERS, Conv
from conv2affine.extension import _C
from conv2affine.geometry import Geometry
from conv2affine.layouts import LAYOUTS

__all__ = ["from_matrix", "to_conv"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
# How many elements, or entries, are looked at together: few enough for the cache, enough to make up for the calls.
# A float32 matrix of 512 MB took 0.18 s; 0.3 s with blocks of a quarter, 0.4 s with blocks 16 times as large.
BLOCK_ELEMENTS = 2**18
# An eigenvalue is 0 below this part of the largest. Over 6,000 random axes those that are 0 came out below 1e-15, and
# the others above 4e-4; they get as small as the number of outputs that read the margins is large.
RANK_TOLERANCE = 1e-12


@torch.no_grad()
def from_matrix(matrix: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """The convolution nearest to a matrix: its weight, and how far from the matrix it is.

        weight   = argmin over w of  || A(w) - matrix ||_F
        residual = || A(weight) - matrix ||_F

    Each weight is the mean of the entries that it fills; where a padding mode lets two taps read one input, it solves a
    small system of equations along each axis. Of several minima it is the one of the least norm: a weight that fills no
    entry is 0.

    For the matrix of a convolution with finite weights it is the weight: exactly where no taps overlap, though -0.0
    comes back as 0.0, and up to rounding where they do.

    Args:
        matrix: The matrix, of shape `geometry.shape`, floating or complex; strided, or sparse with layout
            `torch.sparse_csr`, `torch.sparse_csc` or `torch.sparse_coo` and any entries.
        geometry: Which convolution it should be.

    Returns:
        (weight, residual). The weight has shape `geometry.weight_size`, dtype and device of the matrix, and new memory;
        element [co, ci, *k], or [ci, co, *k] if transposed, is as in the layer. The residual is a 0-dim float64 tensor:
        the Frobenius norm of what no convolution of this geometry can express, and of the rounding of the weight.
        Neither has a gradient. All is computed in float64 or complex128.

        Beside the result, a strided matrix takes a few MB, and the weight a few times in float64. A sparse one is never
        made dense; it takes 25 (COO), 42 (CSR) or 60 (CSC) bytes for each entry.

    Raises:
        TypeError: If `matrix` is no tensor of such a dtype and layout, or `geometry` no `Geometry`.
        ValueError: If the matrix does not have shape `geometry.shape`.

    Example:
        >>> matrix = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 2.0]])
        >>> from_matrix(matrix, Geometry(1, 1, kernel_size=(2,), input_size=3))
        (tensor([[[2., 2.]]]), tensor(1.4142, dtype=torch.float64))
    """
    _check_matrix("matrix", matrix, geometry)
    wide = torch.promote_types(matrix.dtype, torch.float64)
    inverses = [inverse.to(matrix.device, wide) for inverse in _inverse_grams(geometry)]
    source = _Strided(matrix, geometry) if matrix.layout is torch.strided else _Sparse(matrix, geometry, wide)
    solution = torch.zeros(geometry.weight_size, dtype=wide, device=matrix.device)
    # The sum of n equal float32 numbers is exact in float64. That of float64 numbers is rounded: the second round sums
    # what is missing, some units of the last place, and that is exact.
    for _ in range(2 if matrix.dtype == wide else 1):
        correction = source.adjoint(solution)
        for axis, inverse in enumerate(inverses, start=2):
            correction = torch.tensordot(correction, inverse, dims=([axis], [0])).movedim(-1, axis)
        solution += correction
    weight = solution.to(matrix.dtype)
    return weight, source.distance(weight.to(wide))


class _Strided:
    """A strided matrix M, block by block of its rows: so that what is computed in float64 takes no second matrix."""

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
        # Each block gives a whole weight, which is not to take longer than the block.
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
        # One number for each (row, col), in the order of the elements; Geometry has checked that 64 bits are enough.
        keys, numbers = entries.indices()[0] * cols + entries.indices()[1], entries.values()
        nothing = torch.zeros((), dtype=torch.uint8, device=keys.device).expand(geometry.weight_size)
        step = max(1, BLOCK_ELEMENTS * rows // max(1, ops.entries(geometry, range(rows))))
        inside, outside = [], []
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            row, col = ops.coo(nothing, geometry, start, stop)[0]
            # The last key, larger than all others, is where a search ends that finds nothing.
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
    numbers, rule = geometry.operator_arguments()
    dims = len(geometry.kernel_size)
    sizes = [numbers[start : start + dims] for start in range(0, len(numbers), dims)]
    for kernel, input, output, stride, padding, dilation in zip(geometry.kernel_size, *sizes, strict=True):
        axis = (input, output, kernel, stride, padding, dilation)
        start, inputs, taps = map(torch.from_numpy, _C.axis_taps(*axis, rule))
        outputs = torch.repeat_interleave(start.diff())
        key, gram = outputs * input + inputs, torch.zeros(kernel, kernel, dtype=torch.float64, device="cpu")
        # Taps through which an output reads the same input lie one behind the other, in ascending order.
        for distance in range(kernel):
            first, second = slice(0, max(0, len(key) - distance)), slice(distance, None)
            same = key[first] == key[second]
            if not same.any():
                break
            pairs = taps[first][same] * kernel + taps[second][same]
            gram += pairs.bincount(minlength=kernel**2).view(kernel, kernel)
        counts = gram.diag()
        if torch.equal(gram, counts.diag()):  # no overlap: exactly diagonal, whatever LAPACK there is
            yield torch.where(counts > 0, 1 / counts, 0.0).diag()
        else:
            gram += gram.triu(1).T
            yield torch.linalg.pinv(gram, rtol=RANK_TOLERANCE, hermitian=True)


def to_conv(linear: nn.Linear, geometry: Geometry, *, tolerance: float | None = None) -> Conv:
    """The convolution layer that a linear layer is: the inverse of `to_linear`.

        conv(x).flatten(1) == linear(x.flatten(1))

    The weight is that of `from_matrix`; the bias is the mean over the positions of each channel.

    Args:
        linear: An `nn.Linear`; its weight, strided or sparse, is read once, as `linear.weight`.
        geometry: Which convolution it should be, for instance `Geometry.from_layer(conv, input_size)`.
        tolerance: How far the convolution may be from the linear layer: the residual of the weight in parts of its
            Frobenius norm, and that of the bias in parts of its norm. Default: 10 times the machine epsilon of the
            weight's dtype (float32: 1.2e-6), which is what rounding explains. With `float("inf")` it is the nearest
            convolution, however far.

    Returns:
        The layer, of the one of PyTorch's six classes that the geometry is of, with parameters of its own, in the dtype
        and on the device of the linear layer's, which require gradients where those do, in its training mode; without a
        bias where it has none. `weight[co, ci, *k]`, or `[ci, co, *k]` if transposed, is the weight of a tap. No random
        numbers are drawn.

    Raises:
        TypeError: If `linear` is no `nn.Linear` or overrides `forward`; as `from_matrix`.
        ValueError: If the linear layer is no such convolution; if its shape is not that of the geometry; if no layer
            has such a padding. The message has the numbers.

    Example:
        >>> from conv2affine import to_linear
        >>> conv = torch.nn.Conv2d(3, 8, kernel_size=3, stride=2, padding=1)
        >>> geometry = Geometry.from_layer(conv, (9, 9))
        >>> back = to_conv(to_linear(conv, (9, 9)), geometry)
        >>> back
        Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
        >>> torch.equal(back.weight, conv.weight) and torch.equal(back.bias, conv.bias)
        True
    """
    _check_linear(linear)
    with torch.enable_grad():  # otherwise a parametrised weight would not say that it requires grad
        matrix, bias = linear.weight, linear.bias
    _check_matrix("linear.weight", matrix, geometry)
    if tolerance is None:
        tolerance = 10 * torch.finfo(matrix.dtype).eps
    conv = _layer_without_data(geometry, bias is not None)
    weight, residual = from_matrix(matrix, geometry)
    _check_residual("linear.weight is no convolution of this geometry", residual, matrix, tolerance)
    conv.weight = nn.Parameter(weight, matrix.requires_grad)
    if bias is not None:
        mean, residual = _channel_means(bias.detach(), geometry)
        _check_residual("linear.bias is not the same at all positions of a channel", residual, bias, tolerance)
        conv.bias = nn.Parameter(mean, bias.requires_grad)
    return conv.train(linear.training)


def _channel_means(bias: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """The nearest bias of one entry per channel, and how far it is."""
    positions = bias.to(torch.promote_types(bias.dtype, torch.float64)).view(geometry.out_channels, -1)  # (co, o)
    first = positions[:, :1]
    mean = (first + (positions - first).mean(1, keepdim=True)).to(bias.dtype)  # exact where all of them are equal
    return mean.flatten(), torch.linalg.vector_norm(positions - mean)


def _layer_without_data(geometry: Geometry, bias: bool) -> Conv:
    """The layer, its parameters still to come: on "meta" none are allocated, and no random numbers drawn."""
    sizes = (geometry.in_channels, geometry.out_channels, geometry.kernel_size)
    options = {"stride": geometry.stride, "dilation": geometry.dilation, "groups": geometry.groups, "bias": bias}
    options.update(padding=_layer_padding(geometry), padding_mode=geometry.padding_mode, device="meta")
    if geometry.transposed:
        options.update(output_padding=geometry.output_padding)
    layer: type[Conv] = LAYERS[3 * geometry.transposed + len(geometry.kernel_size) - 1]
    return layer(*sizes, **options)  # type: ignore[arg-type]


def _layer_padding(geometry: Geometry) -> str | tuple[int, ...]:
    """The padding as PyTorch's constructors take it."""
    if all(left == right for left, right in geometry.padding):
        return tuple(left for left, _ in geometry.padding)
    reaches = [
        dilation * (kernel - 1) for dilation, kernel in zip(geometry.dilation, geometry.kernel_size, strict=True)
    ]
    same = tuple((reach // 2, reach - reach // 2) for reach in reaches)
    if geometry.padding != same or geometry.transposed or set(geometry.stride) != {1}:
        raise ValueError(
            f"geometry has padding {geometry.padding}, and PyTorch's layers pad both sides alike, except for "
            f"padding='same', here {same} with stride 1; take from_matrix, and F.pad before F.conv{len(same)}d"
        )
    return "same"


def _check_matrix(name: str, matrix: object, geometry: object) -> None:
    """Refuse what is no matrix of this geometry to compute with."""
    if not isinstance(geometry, Geometry):
        raise TypeError(
            f"geometry must be a conv2affine.Geometry, got {type(geometry).__name__}; make it of a layer with "
            "Geometry.from_layer(conv, input_size)"
        )
    if not isinstance(matrix, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(matrix).__name__}")
    if matrix.layout not in LAYOUTS:
        raise TypeError(
            f"{name} must have a layout of {', '.join(map(str, LAYOUTS))}, got {matrix.layout}; convert it with "
            "to_sparse_csr() or to_dense()"
        )
    if matrix.dtype not in DTYPES:
        raise TypeError(
            f"{name} must have a dtype of {', '.join(map(str, DTYPES))}, because means are no integers, got "
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


def _check_linear(linear: object) -> None:
    """Refuse a layer that does not compute x @ weight.T + bias."""
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"linear must be an nn.Linear, got {type(linear).__name__}; from_matrix takes any matrix")
    if type(linear).forward is not nn.Linear.forward or "forward" in vars(linear):
        raise TypeError(
            f"linear ({type(linear).__name__}) overrides forward, so that its output need not be that of nn.Linear; "
            "pass a plain nn.Linear with the weight and bias that it applies"
        )
    if any(is_lazy(parameter) for parameter in vars(linear)["_parameters"].values()):
        raise ValueError(f"linear ({type(linear).__name__}) is lazy and has no weight; run a batch through it first")


def _check_residual(claim: str, residual: Tensor, tensor: Tensor, tolerance: float) -> None:
    """Refuse what is further from the convolution than `tolerance` allows."""
    if residual == 0:
        return
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_sparse(layout=torch.sparse_coo).coalesce().values()
    norm = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float64))
    if not residual <= tolerance * norm:  # so that NaN is refused
        raise ValueError(
            f"{claim}: the nearest one is at a distance of {residual:.3g}, which is {residual / norm:.3g} of its norm "
            f"({norm:.3g}), and tolerance is {tolerance:.3g}; check the geometry, or raise tolerance to take that one"
        )
