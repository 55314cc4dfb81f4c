"""The linear layer of a convolution, its weight sharded by rows over a one-dimensional device mesh."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Shard

from conv2affine.convolution.arguments import Conv, InputSize
from conv2affine.convolution.blocks import bias_rows
from conv2affine.convolution.build import make_linear
from conv2affine.convolution.parameters import read
from conv2affine.interop.dtensor import check_mesh, from_rows, local_rows, local_view
from conv2affine.matrix import to_matrix
from conv2affine.sparse_linear import SparseLinear

SHARDED: tuple[Placement] = (Shard(0),)


class ShardedSparseLinear(nn.Module):
    """A linear layer of which each rank holds the CSR rows that `torch.chunk` gives it.

        y = x @ W.T + b

    It takes a replicated DTensor, or a tensor that is the same on every rank, and gives a DTensor sharded in its last
    dimension. The gradient of the input is summed over the ranks; gradients of weight and bias stay on their rank.

    The one submodule is this rank's `SparseLinear`, named after its rows: each rank's state has names of its own, and
    a checkpoint of another number of ranks does not load.

    Args:
        local: This rank's rows.
        rows: Which rows of the whole matrix these are.
        out_features: Rows of the whole matrix.
        device_mesh: The ranks, in one dimension.
    """

    def __init__(self, local: SparseLinear, rows: range, out_features: int, device_mesh: DeviceMesh) -> None:
        super().__init__()
        self.in_features, self.out_features = local.in_features, out_features
        self.device_mesh = device_mesh
        self.rows = f"rows_{rows.start}_{rows.stop}"
        self.add_module(self.rows, local)

    def forward(self, x: Tensor) -> DTensor:
        """`x @ W.T + b`, for an input of shape `(*, in_features)`."""
        y = self.get_submodule(self.rows)(local_view(x, self.device_mesh, SHARDED)).contiguous()
        shape = torch.Size((*x.shape[:-1], self.out_features))
        stride = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return DTensor.from_local(y, self.device_mesh, (Shard(y.dim() - 1),), shape=shape, stride=stride)

    def extra_repr(self) -> str:
        """Sizes and mesh, for `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, device_mesh={self.device_mesh}"


class GatheredSparseLinear(ShardedSparseLinear):
    """A `ShardedSparseLinear` that gives all outputs to every rank, by one all-gather."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """`x @ W.T + b`, for an input of shape `(*, in_features)`."""
        return super().forward(x).full_tensor()


def sharded_linear(
    conv: Conv,
    input_size: InputSize,
    device_mesh: DeviceMesh,
    layout: torch.layout,
    index_dtype: torch.dtype | None,
    drop_zeros: bool,
) -> nn.Linear | ShardedSparseLinear:
    """`to_linear` with a device mesh; it describes arguments, results and errors."""
    check_line(device_mesh)
    with torch.enable_grad():  # without it, a parametrised weight would not require gradients
        weight, bias, geometry = read(conv, input_size)
    rows = local_rows(geometry.shape[0], device_mesh, SHARDED)
    local = local_view(weight.detach(), device_mesh, SHARDED)
    matrix = to_matrix(local, geometry, layout=layout, rows=rows, index_dtype=index_dtype, drop_zeros=drop_zeros)
    weight_part = nn.Parameter(matrix, weight.requires_grad)
    bias_part = None
    if bias is not None:
        local = local_view(bias.detach(), device_mesh, SHARDED)
        bias_part = nn.Parameter(bias_rows(local, geometry, rows), bias.requires_grad)
    if layout is torch.sparse_csr:
        part = SparseLinear(weight_part, bias_part)
        return ShardedSparseLinear(part, rows, geometry.shape[0], device_mesh).train(conv.training)
    whole_bias = None if bias_part is None else _sharded(bias_part, geometry.shape[0], device_mesh)
    return make_linear(_sharded(weight_part, geometry.shape[0], device_mesh), whole_bias).train(conv.training)


def check_line(device_mesh: DeviceMesh) -> None:
    """Refuse anything but a device mesh of one dimension."""
    check_mesh(device_mesh)
    if device_mesh.ndim != 1:
        raise ValueError(
            f"device_mesh must have one dimension, got {device_mesh}; pass the one that shards the layer, such as "
            'device_mesh["tp"]'
        )


def _sharded(part: nn.Parameter, rows: int, device_mesh: DeviceMesh) -> nn.Parameter:
    """The parameter of this many rows of which this rank has a part."""
    return nn.Parameter(from_rows(part.detach(), rows, device_mesh, SHARDED), part.requires_grad)
