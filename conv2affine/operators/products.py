"""Products with a CSR matrix A that keep to its pattern, as one operator that is differentiable in every way.

With samples n as the columns of x and y, and entries e of A at (r, c), the products are the derivatives of one form:

    sum over e and n of  values[e] * y[r, n] * x[c, n]

The derivative by y is A @ x, that by x is A.T @ y, and that by values is y @ x.T at the entries. So the derivatives of
each product are the other two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

OPERATORS = torch.ops.conv2affine
SCHEMA = "(Tensor? values, Tensor? y, Tensor? x, Tensor crow_indices, Tensor col_indices, SymInt cols) -> Tensor"
BLOCK_ENTRIES = 2**20  # that A.T @ y takes at a time: it makes two int64 indices for each


def matmul(crow_indices: Tensor, col_indices: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """A @ x, contiguous, of shape (rows of A, samples), where x has shape (columns of A, samples)."""
    product: Tensor = OPERATORS.csr_product.default(values, None, x, crow_indices, col_indices, len(x))
    return product


def _product(values: Any, y: Any, x: Any, crow_indices: Tensor, col_indices: Tensor, cols: int) -> Tensor:
    """The derivative of the form by the one of (values, y, x) that is None."""
    size = _product_size(values, y, x, crow_indices, col_indices, cols)
    product: Tensor
    # Under torch.autocast, operators without out= take bfloat16, for which there are no such products.
    if values is None:
        product = x.new_zeros(size)
        matrix = _csr(crow_indices, col_indices, product, cols)
        torch.sparse.sampled_addmm(matrix, y, x.T, beta=0.0, out=matrix)
    elif y is None:
        product = x.new_empty(size)
        matrix = _csr(crow_indices, col_indices, values, cols)
        if size[1] == 1:
            torch.mv(matrix, x[:, 0], out=product[:, 0])  # takes half the time of torch.mm
        else:  # torch.mm fills with zeros, and copies
            torch.addmm(product, matrix, x, beta=0.0, out=product)
    else:
        product = y.new_zeros(size)
        _add_transposed_product(product, crow_indices, col_indices, values, y.contiguous())
    return product


def _add_transposed_product(
    product: Tensor, crow_indices: Tensor, col_indices: Tensor, values: Tensor, y: Tensor
) -> None:
    """Add A.T @ y: by blocks of rows as COO, whose entries may have any order. PyTorch would sort those of CSR."""
    step = max(1, BLOCK_ENTRIES * len(y) // max(1, len(values)))
    for start in range(0, len(y), step):
        row_starts = crow_indices[start : start + step + 1]
        entries = slice(*row_starts[[0, -1]].tolist())
        indices = torch.stack([col_indices[entries], torch.repeat_interleave(row_starts.diff())])
        size = (len(product), len(row_starts) - 1)
        block = torch.sparse_coo_tensor(indices, values[entries], size, device=y.device, check_invariants=False)
        torch.addmm(product, block, y[start : start + step], out=product)


def _csr(crow_indices: Tensor, col_indices: Tensor, values: Tensor, cols: int) -> Tensor:
    size = (len(crow_indices) - 1, cols)
    matrix: Tensor = torch.sparse_csr_tensor(
        crow_indices, col_indices, values, size, device=values.device, check_invariants=False
    )
    return matrix


def _product_size(values: Any, y: Any, x: Any, crow_indices: Tensor, col_indices: Tensor, cols: int) -> tuple[int, ...]:
    """Size of the product, once all sizes are checked."""
    if sum(factor is None for factor in (values, y, x)) != 1:
        raise ValueError("one of values, y and x must be None, and two given")
    samples = (y if x is None else x).shape[-1]
    sizes = ((len(col_indices),), (len(crow_indices) - 1, samples), (cols, samples))
    for name, factor, size in zip(("values", "y", "x"), (values, y, x), sizes, strict=True):
        if factor is None:
            product_size = size
        elif factor.shape != size:
            raise ValueError(f"{name} must have shape {size}, got {tuple(factor.shape)}")
    return product_size


def _product_fake(values: Any, y: Any, x: Any, crow_indices: Tensor, col_indices: Tensor, cols: int) -> Tensor:
    """The product without data."""
    product: Tensor = (y if x is None else x).new_empty(_product_size(values, y, x, crow_indices, col_indices, cols))
    return product


class _Product(torch.autograd.Function):
    """The operator with its derivatives in both modes, and its batches."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            product: Tensor = OPERATORS.csr_product.default(*arguments)
        return product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.cols = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *factors, crow_indices, col_indices = ctx.saved_tensors
        known = [gradient if factor is None else factor.conj().resolve_conj() for factor in factors]
        gradients: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for place in range(len(factors)):
            if ctx.needs_input_grad[place]:
                others = [*known[:place], None, *known[place + 1 :]]
                gradients[place] = OPERATORS.csr_product.default(*others, crow_indices, col_indices, ctx.cols)
        return tuple(gradients)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        *factors, crow_indices, col_indices = ctx.saved_tensors
        parts = []
        for place, tangent in enumerate(tangents):
            if tangent is not None:
                others = [*factors[:place], tangent, *factors[place + 1 :]]
                parts.append(OPERATORS.csr_product.default(*others, crow_indices, col_indices, ctx.cols))
        total: Tensor = sum(parts[1:], parts[0])
        return total

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        batches = (
            [argument] * info.batch_size if axis is None else argument.unbind(axis)
            for argument, axis in zip(arguments, in_dims, strict=True)
        )
        return torch.stack([OPERATORS.csr_product.default(*sample) for sample in zip(*batches, strict=True)]), 0


def _differentiable(*arguments: Any) -> Tensor:
    """The product with its derivatives, if any is asked for: their Python takes as long as a small product."""
    is_needed = torch._C._are_functorch_transforms_active() or any(map(_is_followed, arguments[:3]))
    product: Tensor = (_Product.apply if is_needed else _Product.forward)(*arguments)
    return product


def _is_followed(factor: Tensor | None) -> bool:
    """Whether a factor has a gradient, backward or forward."""
    if factor is None:
        return False
    if factor.requires_grad and torch.is_grad_enabled():
        return True
    return forward_ad.unpack_dual(factor, level=0).tangent is not None  # type: ignore[no-untyped-call]


LIBRARY: Any = torch.library.Library("conv2affine", "FRAGMENT")  # type: ignore[no-untyped-call]
LIBRARY.define(f"csr_product{SCHEMA}")
for _key in ("CPU", "CUDA"):
    LIBRARY.impl("csr_product", _product, _key)
torch.library.register_fake("conv2affine::csr_product", _product_fake, lib=LIBRARY)
LIBRARY.impl("csr_product", _differentiable, "Autograd")
# Above torch.func's kernels, which would take the derivative for zero.
LIBRARY.impl("csr_product", _Product.apply, "FuncTorchDynamicLayerFrontMode")
