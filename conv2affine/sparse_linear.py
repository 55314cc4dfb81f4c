"""The linear layer with a sparse weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from conv2affine.convolution.layouts import assemble
from conv2affine.operators.products import matmul

__all__ = ["SparseLinear"]

TWO_BYTES = (torch.float16, torch.bfloat16)


class SparseLinear(nn.Linear):
    """An `nn.Linear` that stores only the entries of a CSR matrix.

        y = x @ weight.T + bias

    The parts of the matrix are named as in `torch.sparse_csr_tensor`: `values` is a parameter like any other,
    `crow_indices` and `col_indices` are buffers, and `weight` is the CSR tensor of these parts, without a copy.
    Training changes the values and keeps the pattern; gradients take memory for the entries only. The constructor
    keeps the memory of its arguments, as `nn.Parameter` does.

    Inputs are those of `nn.Linear`. The output has the same shape and values, but the samples of a batch are innermost
    in memory: the product is computed in this order, and another SparseLinear takes it without a copy.
    `.contiguous()` gives the usual one. float16 and bfloat16 are computed in float32 and rounded once. Under
    `torch.autocast`, the output has the dtype of `values`.

    Args:
        weight: CSR matrix, (out_features, in_features). Its indices are trusted: wrong ones read past the input, as in
            PyTorch's products; `torch.sparse_csr_tensor(..., check_invariants=True)` checks them.
        bias: (out_features,), or None. Default: None.

    Raises:
        TypeError: If `weight` is not a CSR tensor.
        ValueError: If `weight` is not a matrix, or `bias` does not fit.

    Example:
        >>> layer = SparseLinear(torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 4.0]]).to_sparse_csr())
        >>> layer
        SparseLinear(in_features=3, out_features=2, bias=False, nnz=3)
        >>> layer(torch.tensor([1.0, 10.0, 100.0]))
        tensor([ 20., 403.])
    """

    values: nn.Parameter
    crow_indices: Tensor
    col_indices: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        _check_arguments(weight, bias)
        nn.Module.__init__(self)  # nn.Linear's would allocate a dense weight
        self.out_features, self.in_features = weight.shape
        self.values = nn.Parameter(weight.detach().values(), weight.requires_grad)
        self.register_buffer("crow_indices", weight.crow_indices())
        self.register_buffer("col_indices", weight.col_indices())
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), bias.requires_grad))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The CSR tensor of `values`, in the same memory; gradients reach `values`."""
        size = (self.out_features, self.in_features)
        return assemble(self.crow_indices, self.col_indices, self.values, size, by_columns=False)

    def forward(self, input: Tensor) -> Tensor:
        """`input @ weight.T + bias`, for an input of shape `(*, in_features)`."""
        if input.shape[-1:] != (self.in_features,):
            raise ValueError(f"input must have shape (*, {self.in_features}), got {tuple(input.shape)}")
        dtype = self.values.dtype
        device = input.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            input = input.to(dtype)
        if input.dtype is not dtype:
            raise TypeError(
                f"input must have the dtype of values, {dtype}, got {input.dtype}; convert one of them with .to()"
            )
        wide = torch.float32 if dtype in TWO_BYTES else dtype  # PyTorch has no such product in two bytes on the CPU
        x = input.reshape(-1, self.in_features).T.to(wide)
        y = self._product(self.values, x)
        if self.bias is not None:
            # In place, as fresh memory takes as long as half a small product; not where vmap may give y more axes, in a
            # transform of torch.func, or where this is compiled, perhaps with one.
            in_place = not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is None
            add = Tensor.add_ if in_place else torch.add
            y = add(y, self.bias.unsqueeze(1))
        return y.T.reshape(*input.shape[:-1], self.out_features).to(dtype)

    def _product(self, values: Tensor, x: Tensor) -> Tensor:
        """The product of the matrix of these values with x, (in_features, samples), in the dtype of x."""
        return matmul(self.crow_indices, self.col_indices, values.to(x.dtype), x)

    def reset_parameters(self) -> None:
        """Refused: the constructor of `nn.Linear` fills its weight with random numbers, which no sparse weight has."""
        raise NotImplementedError("SparseLinear has no random initial weights; set values and bias")

    def extra_repr(self) -> str:
        """Sizes, for `repr`."""
        return f"{super().extra_repr()}, nnz={len(self.values)}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        # Products trust the indices. Those of a file may be wrong, or those of another layer with as many entries.
        names = ("crow_indices", "col_indices", "values")
        crow_indices, col_indices, values = (state_dict.get(prefix + name, getattr(self, name)) for name in names)
        size = (self.out_features, self.in_features)
        try:
            torch.sparse_csr_tensor(crow_indices, col_indices, values, size, check_invariants=True)
        except RuntimeError as error:
            lists[-1].append(f"{', '.join(prefix + name for name in names)} are no CSR matrix of {size}: {error}")
            return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *lists)


def _check_arguments(weight: object, bias: object) -> None:
    """Refuse anything but a CSR matrix with its bias."""
    if not isinstance(weight, Tensor) or weight.layout is not torch.sparse_csr:
        got = f"a tensor of layout {weight.layout}" if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(
            f"weight must be a tensor of layout torch.sparse_csr, got {got}; convert it with to_sparse_csr()"
        )
    if weight.dim() != 2 or weight.dense_dim():
        raise ValueError(f"weight must be a matrix of numbers, got shape {tuple(weight.shape)}")
    if bias is not None and (not isinstance(bias, Tensor) or bias.shape != weight.shape[:1]):
        got = f"shape {tuple(bias.shape)}" if isinstance(bias, Tensor) else type(bias).__name__
        raise ValueError(
            f"bias must be None or a tensor of shape ({weight.shape[0]},), one per row of weight, got {got}"
        )
