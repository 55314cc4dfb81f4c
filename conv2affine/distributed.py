"""Matrices that several processes hold together: each rank builds its own rows and sends nothing."""

from conv2affine.interop.dtensor import to_dtensor
from conv2affine.interop.petsc import to_petsc
from conv2affine.interop.sharded import ShardedSparseLinear

__all__ = ["ShardedSparseLinear", "to_dtensor", "to_petsc"]
