"""A convolution applied to samples, without its bias, and its adjoint: the products of its matrix with vectors."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from conv2affine.convolution.geometry import Geometry

CONV: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)
CONV_TRANSPOSE: tuple[Callable[..., Tensor], ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)

# In float64, PyTorch copies the input of a convolution once for each tap of the kernel, for all samples at once. Up to
# here that takes little memory, and stays in the cache.
COPY_BYTES = 2**22


def forward(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The convolution of each sample (in_channels, *input_size): flatten(forward(x)) == A @ flatten(x).

    The weight is as the layer has it, of the dtype of x.
    """
    g = geometry
    if g.transposed:
        return F.pad(_conv_transpose(x, weight, g), _cut(g))
    return CONV[len(g.kernel_size) - 1](_pad(x, g), weight, None, g.stride, _own_padding(g), g.dilation, g.groups)


def in_chunks(convolve: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    """convolve(x) in float64, with a convolution of this weight, computed for some samples at a time."""
    samples = max(1, COPY_BYTES // max(1, x.nbytes // max(1, len(x)) * prod(weight.shape[2:])))
    return torch.cat([convolve(each) for each in torch.split(x, samples)]) if samples < len(x) else convolve(x)


def adjoint(y: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The adjoint for each sample (out_channels, *output_size): flatten(adjoint(y)) == A^H @ flatten(y)."""
    g, weight = geometry, weight.conj()
    if g.transposed:
        y = F.pad(y, [-side for side in _cut(g)])
        return CONV[len(g.kernel_size) - 1](y, weight, None, g.stride, 0, g.dilation, g.groups)
    # The end of the padded input, after the last window: no output reads it.
    unread = [
        (size + left + right - dilation * (kernel - 1) - 1) % step
        for size, (left, right), dilation, kernel, step in zip(
            g.input_size, g.padding, g.dilation, g.kernel_size, g.stride, strict=True
        )
    ]
    x = _conv_transpose(y, weight, g, _own_padding(g), unread)
    if not _needs_pad(g):
        return x
    # F.pad is linear: its derivative is the same everywhere.
    anywhere = y.new_empty(len(y), g.in_channels, *g.input_size)
    return torch.func.vjp(lambda x: _pad(x, g), anywhere)[1](x)[0]  # type: ignore[no-any-return]


def _conv_transpose(
    x: Tensor, weight: Tensor, g: Geometry, padding: list[int] | int = 0, output_padding: list[int] | int = 0
) -> Tensor:
    function = CONV_TRANSPOSE[len(g.kernel_size) - 1]
    return function(x, weight, None, g.stride, padding, output_padding, g.groups, g.dilation)


def _cut(g: Geometry) -> list[int]:
    """For F.pad, from the full transposed convolution to that of the geometry: padding cuts, output_padding adds."""
    sides: list[int] = []
    axes = zip(g.input_size, g.stride, g.dilation, g.kernel_size, g.padding, g.output_size, strict=True)
    for size, step, dilation, kernel, (left, _), output in reversed(list(axes)):
        full = (size - 1) * step + dilation * (kernel - 1) + 1
        sides += [-left, left + output - full]
    return sides


def _needs_pad(g: Geometry) -> bool:
    """Whether F.pad has to pad: a convolution pads both sides alike, with zeros."""
    return g.padding_mode != "zeros" or any(left != right for left, right in g.padding)


def _own_padding(g: Geometry) -> list[int]:
    """What the convolution itself pads."""
    return [0 if _needs_pad(g) else left for left, _ in g.padding]


def _pad(x: Tensor, g: Geometry) -> Tensor:
    if not _needs_pad(g):
        return x
    sides = [side for pair in reversed(g.padding) for side in pair]
    return F.pad(x, sides, "constant" if g.padding_mode == "zeros" else g.padding_mode)
