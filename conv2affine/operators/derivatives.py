"""What PyTorch needs of the operators besides their kernels: derivatives, batches, and outputs without data.

The last output of every operator is linear in its first argument, and the other outputs do not depend on its values.
So the derivative in forward mode is the operator itself, in reverse mode its adjoint, and a batch of weights is one
weight of more channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import FunctionalizeInterpreter, retrieve_current_functorch_interpreter
from torch._subclasses.functional_tensor import FunctorchFunctionalizeAPI
from torch.autograd import forward_ad
from torch.overrides import has_torch_function_unary

from conv2affine.convolution.sizes import INT32_MAX
from conv2affine.operators.extension import _C
from conv2affine.operators.linear_maps import LINEAR, OPERATORS, MatrixArguments, check_bytes

PLAIN = (Tensor, torch.nn.Parameter)


def is_transformed() -> bool:
    """Whether a transform of torch.func or forward mode is active; always False while torch.compile traces."""
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def call(name: str, x: Tensor, *arguments: Any) -> Any:
    """Call an operator the shortest way: for a small matrix, PyTorch's own takes three times as long."""
    is_plain = type(x) in PLAIN and not has_torch_function_unary(x)  # else, sizes may be symbols
    if not is_plain or torch.compiler.is_compiling() or is_transformed():
        return _overload(name)(x, *arguments)
    if x.requires_grad and torch.is_grad_enabled():
        return record(name, x, *arguments)
    return getattr(_C, name)(x, *arguments)


class Operator(torch.autograd.Function):
    """An operator with its derivatives in both modes, and its batches."""

    @staticmethod
    def forward(name: str, x: Tensor, *arguments: Any) -> Any:
        if type(x) in PLAIN:
            return getattr(_C, name)(x, *arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return _overload(name)(x, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        name, x, *arguments = inputs
        patterns = output[:-1] if isinstance(output, tuple) else ()
        ctx.mark_non_differentiable(*patterns)
        ctx.linear, ctx.patterns, ctx.arguments = LINEAR[name](x.shape, *arguments), len(patterns), len(arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, ctx.linear.adjoint(gradients[-1]), *(None,) * ctx.arguments

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor, *__: None) -> Any:
        derivative = ctx.linear(tangent)
        return (*(None,) * ctx.patterns, derivative) if ctx.patterns else derivative

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], name: str, x: Tensor, *arguments: Any) -> tuple[Any, Any]:
        xs = x.movedim(in_dims[1], 0)
        batch = LINEAR[name](xs.shape[1:], *arguments).batched(xs)
        if name not in PATTERNS:
            return batch, 0
        *patterns, _ = _overload(name)(xs.new_empty(xs.shape[1:]), *arguments)
        return (*patterns, batch), (*(None,) * len(patterns), 0)


# Operator.apply without what it does for torch.func, which takes longer than to build a small matrix.
record: Callable[..., Any] = super(torch.autograd.Function, Operator).apply


def _overload(name: str) -> Callable[..., Any]:
    overload: Callable[..., Any] = getattr(OPERATORS, name).default
    return overload


def _transformed(name: str, x: Tensor, *arguments: Any) -> Any:
    """An operator under the innermost transform of torch.func."""
    interpreter = retrieve_current_functorch_interpreter()
    if interpreter.key() != TransformType.Functionalize:
        return Operator.apply(name, x, *arguments)  # type: ignore[no-untyped-call]
    assert isinstance(interpreter, FunctionalizeInterpreter)
    functionalize = FunctorchFunctionalizeAPI(interpreter)  # PyTorch 2.13 supports it for no autograd.Function
    plain = functionalize.unwrap_tensors(x)
    with functionalize.redispatch_to_next():
        result = _overload(name)(plain, *arguments)
    return functionalize.wrap_tensors(result)


def _fake(name: str, x: Tensor, *arguments: Any) -> Any:
    """Outputs without data."""
    linear = LINEAR[name](x.shape, *arguments)
    result = linear.empty(x)
    return (*PATTERNS[name](linear, result, *arguments), result) if name in PATTERNS else result


def _csr_pattern(matrix: MatrixArguments, values: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    index_dtype, rows, (nnz,) = arguments[-1], matrix.block.row_stop - matrix.block.row_start, values.shape
    if not matrix.is_symbolic:
        _check_index_dtype(index_dtype, nnz, rows, matrix.columns)
    check_bytes("the row starts", rows + 1, index_dtype.itemsize)
    return values.new_empty(rows + 1, dtype=index_dtype), values.new_empty(nnz, dtype=index_dtype)


def _coo_pattern(_: MatrixArguments, values: Tensor, *__: Any) -> tuple[Tensor]:
    return (values.new_empty(2, *values.shape, dtype=torch.int64),)


# The outputs before the last of the operators that have some, without data.
PATTERNS: dict[str, Callable[..., tuple[Tensor, ...]]] = {"csr": _csr_pattern, "coo": _coo_pattern}


def _check_index_dtype(index_dtype: torch.dtype, nnz: int, rows: int, cols: int) -> None:
    if index_dtype not in (torch.int32, torch.int64):
        raise ValueError(f"index_dtype ({index_dtype}) must be int32 or int64")
    if index_dtype is torch.int32 and max(nnz, rows, cols) > INT32_MAX:
        raise ValueError(
            f"index_dtype int32 counts to {INT32_MAX}, too few for {nnz} entries in {rows} rows and {cols} columns; "
            "use int64, or a block of rows"
        )


LIBRARY = torch.library.Library("conv2affine", "IMPL")  # type: ignore[no-untyped-call]
for _name in LINEAR:
    torch.library.register_fake(f"conv2affine::{_name}", partial(_fake, _name), lib=LIBRARY)
    # The second is above the kernels of torch.func, which refuse, or treat a derivative that is not registered as zero.
    for _key, _kernel in (("Autograd", record), ("FuncTorchDynamicLayerFrontMode", _transformed)):
        LIBRARY.impl(_name, partial(_kernel, _name), _key)  # type: ignore[no-untyped-call]
