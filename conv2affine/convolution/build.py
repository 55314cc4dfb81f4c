"""The checks before a matrix is built, the bias of its rows, and the layer of both."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from conv2affine.convolution.arguments import COPIED_DTYPES
from conv2affine.convolution.geometry import Geometry
from conv2affine.convolution.guard import check_bias_memory, check_matrix_memory
from conv2affine.convolution.layouts import Request, check_request
from conv2affine.operators import ops


def checked_request(
    weight: Tensor,
    geometry: Geometry,
    layout: torch.layout,
    rows: range | None,
    index_dtype: torch.dtype | None,
    drop_zeros: bool,
) -> Request:
    """All checks between a checked weight and the operators; arguments as in `to_matrix`.

    Raises:
        TypeError: If taps overlap, and their weights are of a dtype that PyTorch does not add.
        ValueError: As `layouts.check_request`; or if zeros of a meta tensor should be dropped.
        MemoryError: As `guard.check_matrix_memory`.
    """
    request = check_request(geometry, layout, rows, index_dtype, drop_zeros)
    if weight.dtype in COPIED_DTYPES and _has_overlap(geometry):
        raise TypeError(
            f"weight ({weight.dtype}) must have a dtype that can be added, because with padding_mode "
            f"{geometry.padding_mode!r}, padding {geometry.padding} and input size {geometry.input_size} several taps "
            "read the same input; pass weight.float()"
        )
    if drop_zeros and weight.is_meta:
        raise ValueError("drop_zeros must be False on the meta device, where no weight is known to be 0; leave it out")
    check_matrix_memory(geometry, weight, request)
    return request


def expand(bias: Tensor, geometry: Geometry) -> Tensor:
    """A bias with one entry per row of the matrix, from one with one entry per channel, in new memory.

        expanded[(co, o)] = bias[co]

    Raises:
        ValueError: If the bias has another shape.
        MemoryError: If there is not enough memory left.
    """
    if bias.shape != (geometry.out_channels,):
        raise ValueError(
            f"bias must have shape ({geometry.out_channels},), one entry per output channel, got {tuple(bias.shape)}"
        )
    check_bias_memory(geometry, bias)
    return ops.bias(bias, geometry)


def make_linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """The linear layer of these parameters."""
    # The constructor of nn.Linear is not called: it would allocate a second matrix, fill it with random numbers, and
    # change the state of the random number generator.
    linear = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(linear)
    linear.out_features, linear.in_features = weight.shape
    linear.weight = weight
    linear.register_parameter("bias", bias)
    return linear


def _has_overlap(geometry: Geometry) -> bool:
    """Whether several taps of an output read the same input, so that their weights add up."""
    if geometry.padding_mode == "zeros":
        return False
    rows = geometry.shape[0]
    # No tap falls outside a folded axis: without an overlap, each is an entry.
    return ops.nnz(geometry, range(rows)) < rows * prod(geometry.grouped_size[2:])
