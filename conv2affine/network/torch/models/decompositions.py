"""Which operators of an exported program are decomposed, and how."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram, exported_program

aten = torch.ops.aten
Table = dict[Any, Callable[..., Any]]
# Not decomposed: a rule covers them, or they say more than what they decompose into.
UNDECOMPOSED = (
    *("linear", "matmul", "pad", "prelu", "glu", "scaled_dot_product_attention", "layer_norm", "group_norm"),
    *("linalg_solve", "linalg_vector_norm", "nan_to_num"),
    "multilabel_margin_loss_forward",  # of which PyTorch's decomposition is another function
    # They would become a check of errors, which is no operator.
    *("linalg_inv", "linalg_cholesky", "linalg_lu_factor", "linalg_ldl_factor"),
    *("hardswish", "hardsigmoid", "silu", "softplus", "mish", "celu", "selu", "threshold"),
    *("instance_norm", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
    *(
        f"{kind}{axes}d"
        for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest")
        for axes in (1, 2, 3)
    ),
)
# The arguments of PyTorch's function behind `run_decompositions`, of no public one: other versions may have others.
ARGUMENTS = ["ep", "cia_to_decomp", "python_decomp_table", "joint_loss_index", "decompose_custom_triton_ops"]


def decompose(program: ExportedProgram) -> ExportedProgram:
    """The program with most operators decomposed; as `run_decompositions`, in a quarter of the time.

    For each program, that prepares all 525 composite operators of PyTorch, most of which decompose by themselves.
    """
    decomposed: ExportedProgram
    function = getattr(exported_program, "_decompose_exported_program", None)
    if function is None or list(inspect.signature(function).parameters) != ARGUMENTS:
        decomposed = program.run_decompositions(_table())
    else:
        composite, others = _split_table()
        decomposed = function(
            program,
            cia_to_decomp=composite,
            python_decomp_table=others,
            joint_loss_index=None,
            decompose_custom_triton_ops=False,
        )
    return decomposed


@functools.cache
def _table() -> Any:
    """PyTorch's table, without the operators that are not decomposed."""
    table = torch.export.default_decompositions()
    for name in UNDECOMPOSED:
        packet = getattr(aten, name)
        for overload in packet.overloads():
            table.pop(getattr(packet, overload), None)  # type: ignore[no-untyped-call]
    table[aten.index_put.default] = _index_put
    table[aten._trilinear.default] = _bilinear
    table[aten._cdist_forward.default] = _distances
    table[aten.addbmm.default] = _addbmm
    table[aten.addmv.default] = torch._decomp.decomposition_table[aten.addmv.default]
    table[aten.aminmax.default] = _aminmax
    table[aten.copysign.Tensor] = _copysign
    table[aten.conv_tbc.default] = _conv_tbc
    table[aten.ldexp.Tensor] = lambda x, other: x * torch.pow(2.0, other)
    table[aten.multilabel_margin_loss.default] = lambda *given: aten.multilabel_margin_loss_forward(*given)[0]
    table[aten.triangular_solve.default] = _triangular_solve
    return table


@functools.cache
def _split_table() -> tuple[Table, Table]:
    """The decompositions of composite operators, without those that decompose by themselves; and of all others."""
    split: Any = exported_program._split_decomp_table_to_cia_and_python_decomp(dict(_table()))
    composite = {operator: function for operator, function in split[0].items() if not _is_own(operator, function)}
    return composite, split[1]


def _is_own(operator: Any, function: Any) -> bool:
    """Whether a function is how a composite operator decomposes by itself, in C++ or in Python."""
    if function is operator.py_kernels.get(torch._C.DispatchKey.CompositeImplicitAutograd):
        return True
    return isinstance(function, functools.partial) and function.keywords == {"kernel": operator}


def _index_put(x: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Any:
    """One number, written where a mask holds, as torch.where, whose shape does not depend on the mask."""
    first = indices[0]
    if accumulate or values.numel() != 1 or len(indices) > 1 or first.dtype is not torch.bool or first.shape != x.shape:
        return NotImplemented
    return torch.where(first, values.to(x.dtype), x)


def _bilinear(i1: Tensor, i2: Tensor, i3: Tensor, *axes: Any, unroll_dim: int = 1) -> Any:
    """nn.Bilinear as a layer and a product, which are affine where one of them is constant, and take any batch."""
    if [list(each) for each in axes[:4]] != [[1, 3], [0], [1, 2], [2, 3]]:
        return NotImplemented
    layer = i1 @ i2.permute(1, 0, 2).flatten(1)
    return (layer.view(len(i1), len(i2), -1) * i3.unsqueeze(1)).sum(-1)


def _distances(x1: Tensor, x2: Tensor, p: float, compute_mode: int | None) -> Any:
    """The distances by the norms that are piecewise linear."""
    if p not in (1, torch.inf):
        return NotImplemented
    differences = (x1.unsqueeze(-2) - x2.unsqueeze(-3)).abs()
    return differences.sum(-1) if p == 1 else differences.amax(-1)


def _addbmm(x: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return beta * x + alpha * (batch1 @ batch2).sum(0)


def _aminmax(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    axes = [] if dim is None else [dim]
    return x.amin(axes, keepdim), x.amax(axes, keepdim)


def _copysign(x: Tensor, other: Tensor) -> Tensor:
    return torch.where(torch.signbit(other), -x.abs(), x.abs())


def _conv_tbc(x: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    return F.conv1d(x.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=pad).permute(2, 0, 1)


def _triangular_solve(
    x: Tensor, matrix: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> tuple[Tensor, Tensor]:
    """The older name of `linalg.solve_triangular`, which also returns the matrix."""
    matrix = matrix.mT if transpose else matrix
    upper = upper is not transpose
    return torch.linalg.solve_triangular(matrix, x, upper=upper, unitriangular=unitriangular), matrix.clone()
