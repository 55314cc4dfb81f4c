"""The linear layer that is equivalent to a convolution layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from conv2affine.convolution.arguments import Conv, InputSize, is_network
from conv2affine.convolution.build import expand, make_linear
from conv2affine.convolution.geometry import Geometry
from conv2affine.convolution.layouts import Layout, named_layout
from conv2affine.convolution.parameters import weight_and_bias
from conv2affine.matrix import to_matrix
from conv2affine.sparse_linear import SparseLinear

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from conv2affine.interop.sharded import ShardedSparseLinear
    from conv2affine.network.torch.models.intake import Model

__all__ = ["to_linear", "torch_conv_layer_to_affine"]

LINEAR_LAYOUTS = (torch.strided, torch.sparse_csr)


@overload
def to_linear(
    conv: Conv,
    input_size: InputSize,
    *,
    layout: Layout = ...,
    index_dtype: torch.dtype | None = ...,
    drop_zeros: bool = ...,
    device_mesh: None = ...,
) -> nn.Linear: ...
@overload
def to_linear(
    conv: Conv,
    input_size: InputSize,
    *,
    layout: Layout = ...,
    index_dtype: torch.dtype | None = ...,
    drop_zeros: bool = ...,
    device_mesh: DeviceMesh,
) -> nn.Linear | ShardedSparseLinear: ...
@overload
def to_linear(conv: Model, input_size: Tensor, *, layout: Layout = ...) -> nn.Linear: ...
def to_linear(
    conv: Any,
    input_size: InputSize,
    *,
    layout: Layout = torch.strided,
    index_dtype: torch.dtype | None = None,
    drop_zeros: bool = False,
    device_mesh: DeviceMesh | None = None,
) -> nn.Linear | ShardedSparseLinear:
    """The fully-connected layer that is exactly equivalent to a convolution layer.

        fc(x.flatten(1)) == conv(x).flatten(1)

    Args:
        conv: `nn.Conv1d`, `Conv2d`, `Conv3d`, `ConvTranspose1d`, `ConvTranspose2d` or
            `ConvTranspose3d`, with any options; or a module that is affine as a whole, such as a convolution and a
            batch norm in an `nn.Sequential`; or what stands for one, as in `to_linear_network`.
        input_size: (I_1, ..., I_D), as in `x.shape[-D:]`, or one int for all axes, or an example input, batch first, of
            which only the shape is read. For a module, an example input, or a tuple of them; integers as in `to_mlp`.
        layout: Layout of the weight. With `torch.sparse_csr`, `forward` takes the same inputs, and only the elements
            that a weight of the convolution goes to take memory. Or "dense" or "sparse", for these two. Default:
            `torch.strided`.
        index_dtype: As in `to_matrix`.
        drop_zeros: As in `to_matrix`.
        device_mesh: The ranks that share the layer, in one dimension; each builds its own rows. Default: None, the
            whole layer in this process.

    Returns:
        An `nn.Linear` with parameters of its own, which have the dtype and device of the layer's and require gradients
        where the layer's do; in the layer's training mode; without a bias where the layer has none. `weight[r, c]` is
        the factor of input element c in output element r, both counted in C order over (channel, *position). Several
        inputs or outputs of a module are one vector; the attributes `input_slices` and `output_slices` say where.

        With `torch.sparse_csr` it is a `SparseLinear`. With a device mesh, weight and bias are DTensors of placements
        `(Shard(0),)`, which `parallelize_module` with `ColwiseParallel` takes as they are; with both, it is a
        `conv2affine.distributed.ShardedSparseLinear`.

    Raises:
        TypeError: If `conv` is not one of the six layers, or is a subclass that computes something else; or if a module
            is not affine: the message names its first nonlinear step.
        ValueError: If sizes do not fit, or the layout cannot be as requested; the message has the numbers.
        MemoryError: If there is not enough memory left; the message has the bytes of each layout.

    Example:
        >>> conv = torch.nn.Conv2d(3, 8, kernel_size=3, stride=2, padding=1)
        >>> x = torch.rand(10, 3, 9, 9)
        >>> fc = to_linear(conv, x.shape[2:])
        >>> fc
        Linear(in_features=243, out_features=200, bias=True)
        >>> torch.allclose(fc(x.flatten(1)), conv(x).flatten(1), atol=1e-6)
        True
    """
    layout = named_layout(layout)
    if layout not in LINEAR_LAYOUTS:
        raise ValueError(
            f'layout ({layout!r}) must be torch.strided or torch.sparse_csr in a linear layer, or "dense" or "sparse"'
        )
    if is_network(conv, input_size):
        from conv2affine.network.vectors import module_to_linear

        if index_dtype is not None or drop_zeros or device_mesh is not None:
            raise ValueError("index_dtype, drop_zeros and device_mesh must be left out for a whole module")
        return module_to_linear(conv, input_size, layout=layout)
    if device_mesh is not None:
        from conv2affine.interop.sharded import sharded_linear  # imports torch.distributed only where it is used

        return sharded_linear(conv, input_size, device_mesh, layout, index_dtype, drop_zeros)
    geometry = Geometry.from_layer(conv, input_size)
    with torch.enable_grad():  # without it, a parametrised weight would not require gradients
        weight, bias = weight_and_bias(conv)
    matrix = to_matrix(weight.detach(), geometry, layout=layout, index_dtype=index_dtype, drop_zeros=drop_zeros)
    rows = None if bias is None else nn.Parameter(expand(bias.detach(), geometry), bias.requires_grad)
    if layout is torch.sparse_csr:
        return SparseLinear(matrix.requires_grad_(weight.requires_grad), rows).train(conv.training)
    return make_linear(nn.Parameter(matrix, weight.requires_grad), rows).train(conv.training)


def torch_conv_layer_to_affine(conv: Conv, input_size: InputSize) -> nn.Linear:
    """The function of the well-known script, for every convolution; the same as `to_linear`.

        fc(x.flatten(1)) == conv(x).flatten(1)

    Args:
        conv: A convolution layer, as in `to_linear`.
        input_size: (I_1, ..., I_D), as in `x.shape[-D:]`, or one int for all axes, or an example input, batch first, of
            which only the shape is read.

    Returns:
        The `nn.Linear`, as in `to_linear`.

    Raises:
        TypeError: As `to_linear`.
        ValueError: As `to_linear`.

    Example:
        >>> torch_conv_layer_to_affine(torch.nn.Conv2d(2, 5, 3, padding=1), (6, 7))
        Linear(in_features=84, out_features=210, bias=True)
    """
    return to_linear(conv, input_size)
