"""The layers of a network that several ranks share; imported where there are several."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from conv2affine.interop.dtensor import local_rows
from conv2affine.interop.sharded import SHARDED, GatheredSparseLinear, check_line
from conv2affine.network.matrices.matrix import Array, Matrix
from conv2affine.network.matrices.rows import take_rows
from conv2affine.network.torch.layers import finite_layer
from conv2affine.sparse_linear import SparseLinear

RUN = "run"  # what ranks tell each other before a run


def number_of_ranks(device_mesh: DeviceMesh) -> int:
    """The ranks that share a network, this one among them."""
    check_line(device_mesh)
    if device_mesh.get_coordinate() is None:
        raise ValueError(f"device_mesh ({device_mesh}) must have this rank; call it on the ranks of the mesh only")
    return device_mesh.size()


def shared_layer(
    name: str, matrix: Matrix, bias: Array | None, dtype: torch.dtype, device_mesh: DeviceMesh
) -> nn.Module:
    """The layer x -> x @ matrix.T + bias, of which this rank builds its rows and nothing else."""
    rows = local_rows(matrix.shape[0], device_mesh, SHARDED)
    part = None if bias is None else bias[rows.start : rows.stop]
    local = finite_layer(name, take_rows(matrix, rows), part, dtype, "sparse")
    assert isinstance(local, SparseLinear)  # for the type checker
    return GatheredSparseLinear(local, rows, matrix.shape[0], device_mesh)


class OtherRankError(RuntimeError):
    """Another rank has failed, and all ranks know."""


class MidRunError(RuntimeError):
    """This rank has failed between the collectives of a network, where it can tell no other rank."""


class InStep(nn.Module):
    """A network whose ranks meet before each run, for use in `together`: if one fails before it, all do.

    Args:
        network: With layers whose outputs the ranks gather.
        device_mesh: The ranks.
    """

    def __init__(self, network: nn.Module, device_mesh: DeviceMesh) -> None:
        super().__init__()
        self.network, self.device_mesh = network, device_mesh

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs of the network."""
        _first_other(self.device_mesh, {"digest": RUN, "error": ""})
        try:
            return self.network(*inputs)
        except Exception as error:
            raise MidRunError(
                f"rank {self.device_mesh.get_rank()} cannot run the network, in which other ranks may wait for it "
                f"until its process ends: {type(error).__name__}: {error}"
            ) from error


@contextmanager
def together(device_mesh: DeviceMesh) -> Iterator[Callable[..., None]]:
    """What fails on one rank fails on all of them, rather than that they wait for it. It ends with a collective.

    In the run of a network, other ranks are in collectives of its layers, and none may be started.

    It gives a function to call with the model, the inputs and the plan, which must be the same on all ranks.

    Raises:
        RuntimeError: If another rank fails.
        ValueError: If another rank has another model, or other inputs or options.
    """
    own, failure = {"digest": "", "error": ""}, None
    try:
        yield lambda model, inputs, plan: own.update(digest=_digest(model, inputs, str(plan)))
    except (OtherRankError, MidRunError):
        raise
    except Exception as error:
        failure, own["error"] = error, f"{type(error).__name__}: {error}"
    rank = _first_other(device_mesh, own)
    if failure is not None:
        raise failure
    if rank is not None:
        raise ValueError(
            f"model, example_inputs and options must be the same on all ranks, and rank {rank} has others; load the "
            "model from one file, or call torch.manual_seed with the same number before it is made"
        )


def _first_other(device_mesh: DeviceMesh, own: dict[str, str]) -> int | None:
    """The first rank with another digest; None if there is none, or this one has an error. All ranks must call it.

    Raises:
        RuntimeError: If another rank has an error, and this one has none; or if some ranks run the network, not all.
    """
    found: list[dict[str, str]] = [{}] * device_mesh.size()
    dist.all_gather_object(found, own, group=device_mesh.get_group())
    if own["error"]:
        return None
    for rank, other in enumerate(found):
        if other["error"]:
            raise OtherRankError(f"no rank converts the model, as rank {rank} of device_mesh cannot: {other['error']}")
    digests = [other["digest"] for other in found]
    if RUN in digests and {*digests} != {RUN}:
        raise OtherRankError(
            f"ranks of device_mesh must agree whether the check needs another run of the network, and for rank "
            f"{digests.index(RUN)} it does, for others not: what they compute differs, as roundings do from one "
            "processor to another; start all on processors of one kind, with the same number of threads"
        )
    return next((rank for rank, digest in enumerate(digests) if digest != own["digest"]), None)


def _digest(model: nn.Module, inputs: Sequence[Tensor], text: str) -> str:
    """A name for text and the numbers of a model and of inputs."""
    digest = hashlib.sha256(text.encode())
    for tensor in (*model.parameters(), *model.buffers(), *inputs):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.layout is torch.strided and not tensor.is_quantized:
            flat = tensor.detach().cpu().resolve_conj().reshape(-1).contiguous()
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
