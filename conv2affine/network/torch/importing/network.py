"""A PyTorch module as a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from conv2affine.network.graph import Graph

__all__ = ["TorchNetwork"]


@dataclass(frozen=True)
class TorchNetwork:
    """An imported module.

    Args:
        graph: Its values are those of a batch of one sample.
        leaves: Outputs of the module: values; tensors that do not depend on inputs; or other objects.
        structure: How the outputs are nested.
        dtypes: Floating dtypes of what depends on the inputs, the most frequent first.
        input_dtypes: Of the inputs, as the graph takes them.
        device: Of the module; of its inputs, if it holds no tensor.
    """

    graph: Graph
    leaves: list[Any]
    structure: pytree.TreeSpec
    dtypes: tuple[torch.dtype, ...]
    input_dtypes: tuple[torch.dtype, ...]
    device: torch.device

    @property
    def constants(self) -> list[Tensor]:
        """Outputs that do not depend on inputs, of other dtypes than the one in which the module computes most."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the module computes most."""
        return self.dtypes[0]
