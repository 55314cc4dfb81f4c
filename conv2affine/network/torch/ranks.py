"""The layers of a network that several ranks share; imported where there are several."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from conv2affine.interop.dtensor import local_rows
from conv2affine.interop.sharded import SHARDED, GatheredSparseLinear, check_line
from conv2affine.network.matrices.matrix import Array, Matrix
from conv2affine.network.matrices.rows import take_rows
from conv2affine.network.torch.layers import layer
from conv2affine.sparse_linear import SparseLinear


def number_of_ranks(device_mesh: DeviceMesh) -> int:
    """The ranks that share a network, this one among them."""
    check_line(device_mesh)
    if device_mesh.get_coordinate() is None:
        raise ValueError(f"device_mesh ({device_mesh}) must have this rank; call it on the ranks of the mesh only")
    return device_mesh.size()


def shared_layer(matrix: Matrix, bias: Array | None, dtype: torch.dtype, device_mesh: DeviceMesh) -> nn.Module:
    """The layer x -> x @ matrix.T + bias, of which this rank builds its rows and nothing else."""
    rows = local_rows(matrix.shape[0], device_mesh, SHARDED)
    part = None if bias is None else bias[rows.start : rows.stop]
    local = layer(take_rows(matrix, rows), part, dtype, "sparse")
    assert isinstance(local, SparseLinear)  # for the type checker
    return GatheredSparseLinear(local, rows, matrix.shape[0], device_mesh)
