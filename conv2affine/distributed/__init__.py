"""Matrices that several processes hold together: each rank builds its own rows and sends nothing."""

from conv2affine.distributed.dtensor import to_dtensor
from conv2affine.distributed.linear import ShardedSparseLinear
from conv2affine.distributed.petsc import to_petsc

__all__ = ["ShardedSparseLinear", "to_dtensor", "to_petsc"]
