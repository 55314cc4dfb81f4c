"""The matrix as a `torch.distributed.tensor.DTensor`: dense, differentiable, sharded by rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from conv2affine.convolution.arguments import Conv, InputSize
from conv2affine.convolution.geometry import Geometry
from conv2affine.convolution.parameters import read
from conv2affine.matrix import to_matrix


def to_dtensor(
    conv: Conv | Tensor,
    input_size: InputSize | Geometry,
    device_mesh: DeviceMesh | None = None,
    placements: Sequence[Placement] = (Shard(0),),
) -> DTensor:
    """The matrix A of a convolution layer as a DTensor, of which each rank builds its own rows.

        flatten(conv(x)) == A @ flatten(x) + b
        A.to_local() == to_matrix(conv, input_size)[rows of this rank]

    No rank sends anything while it builds, or for `A @ x` with a replicated x.

    Args:
        conv: A convolution layer, as in `to_matrix`; or its weight, with a `Geometry` as `input_size`. Its values must
            be the same on every rank. If it is a DTensor on the same mesh, it is replicated first.
        input_size: (I_1, ..., I_D), as in `x.shape[-D:]`, or one int for all axes; or the `Geometry` of the weight.
        device_mesh: The ranks. Default: all of them, in one dimension.
        placements: One per mesh dimension, `Shard(0)` or `Replicate()`. Default: `(Shard(0),)`.

    Returns:
        A DTensor of shape (rows of the matrix, in_channels * prod(input_size)) and of the weight's dtype. Element
        [r, c] is that of `to_matrix`; rows are split as `torch.chunk` splits them. It is differentiable in the weight,
        twice; a backward pass sums the gradients of all shards, so every rank has the full one.

    Raises:
        TypeError: As `to_matrix`; or if `device_mesh` is none, or a placement is neither `Shard` nor
            `Replicate`.
        ValueError: As `to_matrix`; if the placements do not fit the mesh, or shard columns.
        MemoryError: If this rank's rows need more memory than is left.
        RuntimeError: If there is neither a device mesh nor a process group.

    Example:
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun's work
        >>> A = to_dtensor(torch.nn.Conv2d(3, 8, 3), 9)
        >>> A.shape, A.placements
        (torch.Size([392, 243]), (Shard(dim=0),))
        >>> dist.destroy_process_group()
    """
    weight, _, geometry = read(conv, input_size)
    mesh = _world_mesh(weight.device) if device_mesh is None else device_mesh
    check_mesh(mesh)
    _check_placements(placements, mesh)
    rows = local_rows(geometry.shape[0], mesh, placements)
    # Each rank's gradient is that of its own rows: summed over the shards, and the same on every replica.
    matrix = to_matrix(local_view(weight, mesh, placements), geometry, rows=rows)
    return from_rows(matrix, geometry.shape[0], mesh, placements)


def local_rows(rows: int, mesh: DeviceMesh, placements: Sequence[Placement]) -> range:
    """The rows that this rank holds: those of `torch.chunk`, the only split that a DTensor can have."""
    local = range(rows)
    coordinate = mesh.get_coordinate()
    if coordinate is None:  # this rank is not in the mesh
        return range(0)
    for dim, placement in enumerate(placements):
        if isinstance(placement, Shard):
            step = -(-len(local) // mesh.size(dim))
            start = min(coordinate[dim] * step, len(local))
            local = local[start : start + step]
    return local


def from_rows(local: Tensor, rows: int, mesh: DeviceMesh, placements: Sequence[Placement]) -> DTensor:
    """The DTensor of which this rank holds `local`; shape and stride of the whole, which ranks cannot guess alike."""
    shape = torch.Size((rows, *local.shape[1:]))
    return DTensor.from_local(local, mesh, placements, shape=shape, stride=local.stride(), run_check=False)


def local_view(tensor: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> Tensor:
    """A tensor that is the same on every rank, for a computation of which each shard does its own part.

    The gradients of the shards are summed in the backward pass.
    """
    if mesh.get_coordinate() is None:
        return tensor.detach()  # this rank has no part, and PyTorch would leave it no elements
    replicated = [Replicate()] * mesh.ndim
    if not torch.is_grad_enabled():
        tensor = tensor.detach()  # PyTorch warns of a DTensor that requires grad, and has none here
    if not isinstance(tensor, DTensor):
        tensor = DTensor.from_local(tensor, mesh, replicated, run_check=False)
    # It is replicated already, mostly. The gradients are summed in the backward of `redistribute`, which PyTorch 2.13
    # differentiates, and not in that of `from_local`, which it does not.
    whole = tensor.redistribute(mesh, replicated)
    partial = [Partial() if isinstance(placement, Shard) else Replicate() for placement in placements]
    local: Tensor = whole.to_local(grad_placements=partial)
    return local


def _world_mesh(device: torch.device) -> DeviceMesh:
    """All ranks in one dimension."""
    if not dist.is_initialized():
        raise RuntimeError(
            "device_mesh (None) needs a process group: start with torchrun and call "
            "torch.distributed.init_process_group(), or pass a device mesh"
        )
    return init_device_mesh(device.type, (dist.get_world_size(),))


def check_mesh(mesh: object) -> None:
    """Refuse anything but a device mesh."""
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(
            f"device_mesh must be a torch.distributed.device_mesh.DeviceMesh, got {mesh!r}; init_device_mesh makes one"
        )


def _check_placements(placements: Sequence[Placement], mesh: DeviceMesh) -> None:
    """Refuse what does not split the matrix by rows."""
    if len(placements) != mesh.ndim:
        raise ValueError(f"placements ({placements}) must have one entry per mesh dimension, that is {mesh.ndim}")
    for placement in placements:
        if type(placement) not in (Shard, Replicate):
            raise TypeError(f"placements ({placements}) must be Shard(0) or Replicate(), got {placement!r}")
        if isinstance(placement, Shard) and placement.dim != 0:
            raise ValueError(
                f"placements ({placements}) must shard dimension 0: each rank builds whole rows; call "
                f".redistribute(placements=...) on the result to get {placement!r}"
            )
