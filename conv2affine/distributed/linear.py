"""The linear layer of a convolution, its weight sharded by rows over a one-dimensional device mesh."""

from __future__ import annotations

from math import prod
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Shard

from conv2affine.blocks import bias_rows, matrix_rows, weight_and_geometry
from conv2affine.distributed.dtensor import from_rows, local_rows, local_view
from conv2affine.geometry import Conv, Sizes
from conv2affine.linear import SparseLinear

__all__ = ["ShardedSparseLinear", "sharded_linear"]

SHARDED: tuple[Placement] = (Shard(0),)
L = TypeVar("L", bound=nn.Linear)


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
        y = self.get_submodule(self.rows)(local_view(x, self.device_mesh, SHARDED)).contiguous()
        shape = torch.Size((*x.shape[:-1], self.out_features))
        stride = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return DTensor.from_local(y, self.device_mesh, (Shard(y.dim() - 1),), shape=shape, stride=stride)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, device_mesh={self.device_mesh}"


def sharded_linear(
    conv: Conv,
    input_size: Sizes,
    device_mesh: DeviceMesh,
    layout: torch.layout = torch.strided,
    index_dtype: torch.dtype | None = None,
    drop_zeros: bool = False,
) -> nn.Linear | ShardedSparseLinear:
    """`to_linear` with a device mesh; it describes arguments, results and errors."""
    if device_mesh.ndim != 1:
        raise ValueError(
            f"device_mesh must have one dimension, got {device_mesh}; pass the one that shards the layer, such as "
            'device_mesh["tp"]'
        )
    with torch.enable_grad():  # otherwise a parametrised weight would not show that it requires grad
        weight, geometry = weight_and_geometry(conv, input_size)
    rows = local_rows(geometry.shape[0], device_mesh, SHARDED)
    local = local_view(weight.detach(), device_mesh, SHARDED)
    matrix = matrix_rows(local, geometry, rows, layout, index_dtype, drop_zeros)
    parameters = {"weight": nn.Parameter(matrix, weight.requires_grad)}
    if conv.bias is not None:
        local = local_view(conv.bias.detach(), device_mesh, SHARDED)
        parameters["bias"] = nn.Parameter(bias_rows(local, geometry, rows), conv.bias.requires_grad)
    if layout is torch.sparse_csr:
        part = _assemble(SparseLinear, parameters)
        return ShardedSparseLinear(part, rows, geometry.shape[0], device_mesh).train(conv.training)
    for name, parameter in parameters.items():
        whole = from_rows(parameter.detach(), geometry.shape[0], device_mesh, SHARDED)
        parameters[name] = nn.Parameter(whole, parameter.requires_grad)
    return _assemble(nn.Linear, parameters).train(conv.training)


def _assemble(kind: type[L], parameters: dict[str, nn.Parameter]) -> L:
    """A layer of parameters that are there: the constructor would allocate others, and fill them at random."""
    linear = kind.__new__(kind)
    nn.Module.__init__(linear)
    linear.out_features, linear.in_features = parameters["weight"].shape
    for name in ("weight", "bias"):
        linear.register_parameter(name, parameters.get(name))
    return linear
