"""The linear layer that does what a convolution layer does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from conv2affine.dispatch import is_network
from conv2affine.geometry import Conv, Geometry, Sizes
from conv2affine.matrix import build, expand

__all__ = ["SparseLinear", "to_linear", "torch_conv_layer_to_affine"]


class SparseLinear(nn.Linear):
    """An `nn.Linear` whose weight is a sparse CSR matrix.

        y = x @ W.T + b

    `forward` takes the inputs that `nn.Linear` takes, and gradients reach them. PyTorch makes the gradient of a sparse
    weight a strided matrix: before a backward pass through a large layer, freeze it,
    `fc.weight.requires_grad_(False)`. What PyTorch 2.13 lacks for such a weight is here: another dtype or device, and
    `copy.deepcopy`. What it does not have at all: products in float16 and bfloat16 on the CPU, optimizers for a sparse
    weight, and `share_memory`.

    Example:
        >>> to_linear(nn.Conv2d(3, 8, 3), 9, layout=torch.sparse_csr).double()
        SparseLinear(in_features=243, out_features=392, bias=True)
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        # nn.Module assigns to `weight.data`, which changes the dtype of a CSR tensor, but not that of its values: the
        # weight is left out there, and replaced where it changes.
        weight: Any = self.weight
        self._parameters["weight"] = None
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            self._parameters["weight"] = weight
        with torch.no_grad():
            applied = fn(weight)
        if applied is not weight:
            self.weight = nn.Parameter(applied.detach(), weight.requires_grad)
            if weight.grad is not None:
                self.weight.grad = fn(weight.grad)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseLinear:
        # A parameter copies itself with a memory format, which CSR tensors refuse.
        memo[id(self.weight)] = nn.Parameter(self.weight.detach().clone(), self.weight.requires_grad)
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


LAYERS: dict[torch.layout, type[nn.Linear]] = {torch.strided: nn.Linear, torch.sparse_csr: SparseLinear}


def to_linear(
    conv: Conv,
    input_size: Sizes,
    *,
    layout: torch.layout = torch.strided,
    index_dtype: torch.dtype | None = None,
    drop_zeros: bool = False,
) -> nn.Linear:
    """The fully-connected layer that is exactly equivalent to a convolution layer.

        fc(x.flatten(1)) == conv(x).flatten(1)

    Args:
        conv: `nn.Conv1d`, `Conv2d`, `Conv3d`, `ConvTranspose1d`, `ConvTranspose2d` or
            `ConvTranspose3d`, with any options.
        input_size: (I_1, ..., I_D), as in `x.shape[-D:]`, or one int for all axes.
        layout: Layout of the weight; with `torch.sparse_csr`, `forward` takes the same inputs, and
            only entries that a weight of the convolution goes to take memory. Default:
            `torch.strided`.
        index_dtype: As in `to_matrix`.
        drop_zeros: As in `to_matrix`.

    Returns:
        An `nn.Linear` with parameters of its own, in the dtype and on the device of the layer's,
        which require gradients where the layer's do, in the layer's training mode; without a bias
        where the layer has none. `weight[r, c]` tells how much input element c counts in output
        element r, both counted in C order over (channel, *position).

        With `torch.sparse_csr` it is a `SparseLinear`.

    Raises:
        TypeError: If `conv` is not one of the six layers, or a subclass that computes otherwise.
        ValueError: If sizes do not fit, or the layout cannot be as asked for; the message has the
            numbers.
        MemoryError: If there is not enough memory left; the message has the bytes of each layout.

    Example:
        >>> conv = torch.nn.Conv2d(3, 8, kernel_size=3, stride=2, padding=1)
        >>> x = torch.rand(10, 3, 9, 9)
        >>> fc = to_linear(conv, x.shape[2:])
        >>> fc
        Linear(in_features=243, out_features=200, bias=True)
        >>> torch.allclose(fc(x.flatten(1)), conv(x).flatten(1), atol=1e-6)
        True
    """
    if layout not in LAYERS:
        raise ValueError(f"layout ({layout}) must be torch.strided or torch.sparse_csr in a linear layer")
    if is_network(conv, input_size):
        from conv2affine.network.convert import module_to_linear

        if index_dtype is not None or drop_zeros:
            raise ValueError("index_dtype and drop_zeros must be left out for a whole module")
        return module_to_linear(conv, input_size, layout="dense" if layout is torch.strided else "sparse")
    geometry = Geometry.from_layer(conv, input_size)
    with torch.enable_grad():  # otherwise a parametrised weight would not say that it requires grad
        weight, bias = conv.weight, conv.bias
    matrix = build(weight.detach(), geometry, layout, None, index_dtype, drop_zeros)
    # The constructor of nn.Linear is left out: it would allocate a second matrix, fill it with
    # random numbers, and move the state of the random number generator.
    linear = LAYERS[layout].__new__(LAYERS[layout])
    nn.Module.__init__(linear)
    linear.out_features, linear.in_features = geometry.shape
    linear.weight = nn.Parameter(matrix, weight.requires_grad)
    if bias is None:
        linear.register_parameter("bias", None)
    else:
        linear.bias = nn.Parameter(expand(bias.detach(), geometry), bias.requires_grad)
    return linear.train(conv.training)


def torch_conv_layer_to_affine(conv: Conv, input_size: Sizes) -> nn.Linear:
    """The well-known script's function of this name, for every convolution; same as `to_linear`.

        fc(x.flatten(1)) == conv(x).flatten(1)

    Args:
        conv: A convolution layer, as in `to_linear`.
        input_size: (I_1, ..., I_D), as in `x.shape[-D:]`, or one int for all axes.

    Returns:
        The `nn.Linear`, as in `to_linear`.

    Raises:
        TypeError: As `to_linear`.
        ValueError: As `to_linear`.

    Example:
        >>> torch_conv_layer_to_affine(torch.nn.Conv2d(2, 5, 3, padding=1), (6, 7))
        Linear(in_features=84, out_features=210, bias=True)
    """
    return to_linear(conv, input_size)
