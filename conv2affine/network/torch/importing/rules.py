"""The rules of ATen operators: their arguments, read into the neutral ones of `network.rules`.

A rule takes a context and the operator's arguments by the names of their schema, or by those in
`arguments.NAMES`. It need not take all of them: it applies only where the others have their defaults.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from conv2affine.network.graph import Value
from conv2affine.network.rules import activations, arithmetic, positions, shapes
from conv2affine.network.rules.operands import Context, NoRuleError, Rule, constant, value
from conv2affine.network.torch.importing import windows


def add(context: Context, x: Any, other: Any, alpha: Any = 1) -> Any:
    return arithmetic.add(context, x, other, scales=(1, float(alpha)))


def subtract(context: Context, x: Any, other: Any, alpha: Any = 1) -> Any:
    return arithmetic.add(context, x, other, scales=(1, -float(alpha)))


def copy(context: Context, x: Any, **options: Any) -> Any:
    return shapes.copy(context, x)


def instance_norm(context: Context, x: Any, use_input_stats: bool, **options: Any) -> Any:
    if use_input_stats:
        raise NoRuleError("it takes its statistics from its input")
    return arithmetic.batch_norm(context, x, **options)


def linear(context: Context, x: Any, weight: Any, bias: Any = None) -> Any:
    return arithmetic.gemm(context, x, weight, bias, transpose_other=True)


def solve(context: Context, matrix: Any, other: Any, left: bool = True) -> Any:
    return arithmetic.solve(context, torch.linalg.solve, matrix, other, left)


def solve_triangular(
    context: Context, x: Any, other: Any, upper: bool, left: bool = True, unitriangular: bool = False
) -> Any:
    function = functools.partial(torch.linalg.solve_triangular, upper=upper, unitriangular=unitriangular)
    return arithmetic.solve(context, function, x, other, left)


def lu_solve(context: Context, matrix: Any, pivots: Any, other: Any, left: bool = True, adjoint: bool = False) -> Any:
    function = functools.partial(torch.linalg.lu_solve, adjoint=adjoint)
    return arithmetic.solve(context, lambda lu, units: function(lu, pivots, units), matrix, other, left)


def cholesky_solve(context: Context, x: Any, input2: Any, upper: bool = False) -> Any:
    return arithmetic.solve(context, lambda matrix, units: torch.cholesky_solve(units, matrix, upper), input2, x, True)


def addmm(context: Context, x: Any, mat1: Any, other: Any, beta: Any = 1, alpha: Any = 1) -> Any:
    return arithmetic.gemm(context, mat1, other, x, alpha=float(alpha), beta=float(beta))


def csr_product(context: Context, values: Any, y: Any, x: Any, crow_indices: Any, col_indices: Any, cols: int) -> Any:
    """The product of `SparseLinear`, matrix @ x; the others are those of its gradients."""
    if y is not None:
        raise NoRuleError("it is a product of the transposed matrix")
    return arithmetic.sparse_matmul(context, values, crow_indices, col_indices, x)


def reduction(how: str) -> Rule:
    def reduce(context: Context, x: Any, axis: Any = None) -> Any:
        return arithmetic.reduce(context, x, _axes(x, axis), how)

    return reduce


def norm(context: Context, x: Any, order: Any = 2, axis: Any = None) -> Any:
    return arithmetic.norm(context, x, _axes(x, axis), order)


def _axes(x: Any, axis: Any) -> Sequence[int]:
    return [axis] if isinstance(axis, int) else axis or range(len(value(x).shape))


def prelu(context: Context, x: Any, weight: Any) -> Any:
    slope, shape = constant(weight), value(x).shape
    return activations.leaky_relu(
        context, x, slope.reshape(1, -1, *(1 for _ in shape[2:])) if len(shape) > 1 else slope
    )


def extremum(kind: str) -> Rule:
    rule = activations.extremum(kind)
    return lambda context, x, other: rule(context, x, other)


def hardtanh(context: Context, x: Any, low: Any = -1, high: Any = 1) -> Any:
    return activations.clip(context, x, low, high)


def rrelu(context: Context, x: Any, noise: Any, lower: Any = 1 / 8, upper: Any = 1 / 3, training: bool = False) -> Any:
    return activations.leaky_relu(context, x, (lower + upper) / 2)


def threshold(context: Context, x: Any, threshold: Any, value: Any) -> Any:
    return activations.threshold(context, x, threshold, value)


def index_put(context: Context, x: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
    if not accumulate:
        return shapes.move(context)
    return shapes.put_at(context, x, values, _places(context, torch.ops.aten.index, indices), "sum")


def scatter_reduce(
    context: Context, x: Any, axis: int, index: Any, src: Any, reduce: str = "sum", include_self: bool = True
) -> Any:
    if index.shape != src.shape:
        raise NoRuleError("only a part is added")
    places, how = _places(context, torch.gather, axis, index), {"add": "sum"}.get(reduce, reduce.removeprefix("a"))
    return shapes.put_at(context, x, src, places, how, include_self=include_self)


def index_reduce(
    context: Context, x: Any, axis: int, index: Any, source: Any, reduce: str, include_self: bool = True
) -> Any:
    places = _places(context, torch.index_select, axis, index)
    return shapes.put_at(context, x, source, places, reduce.removeprefix("a"), include_self=include_self)


def _places(context: Context, function: Any, *arguments: Any) -> Any:
    """The numbers of the elements of the result that indices name."""
    if any(isinstance(x, Value) for x in pytree.tree_leaves(arguments)):
        raise NoRuleError("its indices depend on the inputs")
    return function(torch.arange(Value(context.shape).size).view(context.shape), *arguments).numpy()


def sort(context: Context, x: Any, axis: int = -1, descending: bool = False, stable: Any = None) -> Any:
    ranks = range(value(x).shape[axis])
    return activations.order(context, x, axis, ranks[::-1] if descending else ranks)


def topk(context: Context, x: Any, k: int, axis: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    if k > 1 and not sorted:
        raise NoRuleError("sorted = False leaves the order open")
    ranks = range(value(x).shape[axis])
    return activations.order(context, x, axis, (ranks[::-1] if largest else ranks)[:k])


def kth_value(context: Context, x: Any, k: int, axis: int = -1) -> Any:
    return activations.order(context, x, axis, [k - 1])


def median(context: Context, x: Any, axis: int) -> Any:
    return kth_value(context, x, (value(x).shape[axis] + 1) // 2, axis)


def running(how: str) -> Rule:
    return lambda context, x, axis: activations.running_extremum(context, x, axis, how)


def cat(context: Context, tensors: Sequence[Any], axis: int = 0) -> Any:
    return shapes.concat(context, tensors, axis)


MOVING = (
    *("view", "permute", "squeeze", "unsqueeze", "expand", "repeat", "diagonal", "unfold", "flip", "slice", "select"),
    *("split_with_sizes", "slice_scatter", "index", "index_select", "gather", "pad", "constant_pad_nd"),
    *("copy", "scatter", "masked_scatter", "diagonal_scatter"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
)
DIMENSIONS = (1, 2, 3)
# By the name of the operator, with its overload where only that has the rule.
RULES: dict[str, Rule] = {
    **dict.fromkeys(MOVING, shapes.move),
    "nan_to_num": copy,  # of numbers
    **dict.fromkeys(("clone", "alias", "_to_copy"), copy),
    "cat": cat,
    "index_put": index_put,
    **dict.fromkeys(("scatter_add", "scatter_reduce", "scatter.reduce"), scatter_reduce),
    "index_reduce": index_reduce,
    # Arithmetic
    "add": add,
    "sub": subtract,
    **dict.fromkeys(("neg", "_neg_view"), arithmetic.negate),
    "mul": arithmetic.multiply,
    **dict.fromkeys(("div.Tensor", "div.Scalar"), arithmetic.divide),
    "pow": arithmetic.power,
    "where": arithmetic.where,
    "_native_batch_norm_legit_no_training": arithmetic.batch_norm,
    "instance_norm": instance_norm,
    "linear": linear,
    **dict.fromkeys(("matmul", "mm", "bmm"), arithmetic.matmul),
    **dict.fromkeys(("addmm", "_sparse_addmm"), addmm),
    "linalg_solve": solve,
    "linalg_solve_triangular": solve_triangular,
    "linalg_lu_solve": lu_solve,
    "cholesky_solve": cholesky_solve,
    "csr_product": csr_product,
    **{name: reduction(name) for name in ("sum", "mean")},
    **{name: reduction(name[-3:]) for name in ("amax", "amin")},
    **{f"{name}.dim": reduction(name) for name in ("max", "min")},
    "linalg_vector_norm": norm,
    "cumsum": arithmetic.cumulate,
    # Over positions
    **dict.fromkeys(("convolution", "_convolution"), windows.convolution),
    **{f"avg_pool{axes}d": windows.pool(positions.average_pool, axes) for axes in DIMENSIONS},
    **{f"max_pool{axes}d": windows.pool(positions.max_pool, axes) for axes in DIMENSIONS},
    **{f"max_pool{axes}d_with_indices": windows.pool(positions.max_pool, axes) for axes in (2, 3)},
    **{f"adaptive_avg_pool{axes}d": windows.adaptive(positions.adaptive_average_pool, axes) for axes in DIMENSIONS},
    **{f"adaptive_max_pool{axes}d": windows.adaptive(positions.adaptive_max_pool, axes) for axes in DIMENSIONS},
    **{
        name: windows.upsample(name, axes)
        for name, axes in (
            *(("upsample_linear1d", 1), ("upsample_bilinear2d", 2), ("upsample_trilinear3d", 3)),
            *((name, 2) for name in ("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")),
        )
    },
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d"), windows.grid_sample),
    # Steps
    **{kind: activations.plain(kind) for kind in ("relu", "abs")},
    **{kind: extremum(kind) for kind in ("maximum", "minimum")},
    **{f"f{kind[:3]}": extremum(kind) for kind in ("maximum", "minimum")},  # they differ from these for NaN only
    "leaky_relu": activations.leaky_relu,
    "prelu": prelu,
    "rrelu_with_noise_functional": rrelu,
    "clamp": activations.clip,
    "hardtanh": hardtanh,
    "hardsigmoid": lambda context, x: activations.hard_sigmoid(context, x, 1 / 6, 0.5),
    "threshold": threshold,
    "sort": sort,
    "topk": topk,
    "kthvalue": kth_value,
    **dict.fromkeys(("median.dim", "nanmedian.dim"), median),
    **{f"cum{how}": running(how) for how in ("max", "min")},
}
# Operators that complex arithmetic becomes and that have no rule, and why.
REASONS = {
    "hypot": "the absolute value of complex numbers is not piecewise linear",
    "complex": "its result is complex",
}
