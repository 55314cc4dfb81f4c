"""What a converted network holds besides its layers and operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree

from conv2affine.network.matrices.matrix import Array, Matrix


class Container(nn.Module):
    """Puts outputs into the container that the model returns."""

    def __init__(self, structure: pytree.TreeSpec) -> None:
        super().__init__()
        self.structure = structure

    def forward(self, *leaves: Any) -> Any:
        """The leaves in their places."""
        return pytree.tree_unflatten(leaves, self.structure)


class PerSample(nn.Module):
    """Runs a module that takes a batch of one on each sample by itself, all of them at a time; the origin names it."""

    def __init__(self, module: nn.Module, origin: str) -> None:
        super().__init__()
        self.module, self.origin = module, origin

    def forward(self, *inputs: Tensor) -> Any:
        """Inputs and results have one more axis, in front."""
        if inputs[0].shape[0]:  # len() would be a constant in an export
            try:
                return torch.vmap(self.module)(*inputs)
            except RuntimeError as error:
                if "batching rule" not in str(error).lower():
                    raise
                raise NotImplementedError(
                    f"{self.origin} must be affine, or an operator that torch.vmap runs on each sample, and PyTorch "
                    "has no rule for that; compute the same with other operators"
                ) from error
        # Many operators refuse empty tensors, and some the values of others, as the inverse does zeros.
        with FakeTensorMode(allow_non_fake_inputs=True):
            one = self.module(*(torch.empty(x.shape[1:], dtype=x.dtype, device=x.device) for x in inputs))
        return pytree.tree_map(lambda result: inputs[0].new_empty((0, *result.shape), dtype=result.dtype), one)


class Affine(nn.Module):
    """The layer x -> x @ matrix.T + bias in float64, without writing the matrix out; the bias may be None."""

    def __init__(self, matrix: Matrix, bias: Array | None) -> None:
        super().__init__()
        self.matrix, self.bias = matrix, bias

    def forward(self, input: Tensor) -> Tensor:
        """(batch, cols) -> (batch, rows), on the device of the input."""
        with np.errstate(all="ignore"):  # what operators give may be infinite
            y = self.matrix.apply(input.double().cpu().numpy())
        return torch.from_numpy(y if self.bias is None else y + self.bias).to(input.device)


class BoxChain(nn.Sequential):
    """A chain that is equal to a model in a box of inputs, and not outside of it."""

    __jit_ignored_attributes__ = ("box", "bounds", "_bounds", "_dtypes")  # TorchScript has no such types
    where = ""  # the box, for people to read
    box: tuple[Tensor, ...]
    bounds: tuple[tuple[Tensor, ...], ...]  # for each linear layer the pair (low, high) of float64 tensors (rows,)

    def describe(
        self,
        where: str,
        box: tuple[Tensor, ...],
        bounds: tuple[tuple[Tensor, ...], ...],
        dtype: torch.dtype,
    ) -> None:
        """Set the box in words and in numbers, and the bounds of the layers in a dtype."""
        self.where, self.box, self._bounds, self._dtypes = where, box, bounds, [dtype]

    def _apply(self, *args: Any, **options: Any) -> BoxChain:
        """Remember the dtypes that the weights come through: a wider one does not bring back what was rounded."""
        super()._apply(*args, **options)  # type: ignore[no-untyped-call]
        if self.where:
            self._dtypes = [*self._dtypes, *{parameter.dtype for parameter in self.parameters()}]
        return self

    def __getattr__(self, name: str) -> Any:
        """The bounds, unless the weights were rounded. Not a property: `nn.Module` hides the message of its error."""
        if name != "bounds" or not self.where:
            return super().__getattr__(name)
        own, *others = self._dtypes
        for dtype in (*others, *(parameter.dtype for parameter in self.parameters())):
            if torch.promote_types(dtype, own) is not dtype:
                raise AttributeError(
                    f"bounds hold for a chain in {own}, and this one was converted to {dtype}; call to_mlp with "
                    f"dtype={dtype}"
                )
        return self._bounds

    def extra_repr(self) -> str:
        """The box; of a slice of the chain, nothing."""
        return self.where and f"for {self.where}"
