"""Complex numbers in a program as pairs of real ones, so that all that comes after knows real numbers only.

(a + ib) + (c + id) = (a + c) + i(b + d)        (a + ib)(c + id) = (ac - bd) + i(ad + bc)

What moves and sums elements does so with both parts; a Fourier transform is a product with a matrix along each axis;
|a + ib| is hypot(a, b). An operator without a rule here takes and gives complex numbers as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.fx.node import map_arg

from conv2affine.network.torch.importing.pairs import Pair, Writer, is_complex
from conv2affine.network.torch.importing.rules import MOVING

aten = torch.ops.aten
BLANK = ("empty", "full", "ones", "rand", "randn", "zeros")


def complex_as_pairs(program: ExportedProgram) -> None:
    """Put operators on real tensors in the place of those on complex ones that inputs reach, once decomposed."""
    if any(is_complex(node) for node in program.graph.nodes):
        Writer(program, RULES).run()


def each(writer: Writer, *args: Any, **kwargs: Any) -> Pair:
    """The same with both parts: what is linear, and real."""

    def is_part(x: fx.Node) -> bool:
        return x in writer.pairs or x.meta["val"].dtype.is_floating_point or is_complex(x)

    nodes: list[fx.Node] = []
    map_arg((args, kwargs), nodes.append)
    pairs = {x: writer.pair(x) for x in dict.fromkeys(nodes) if is_part(x)}

    def part(number: int) -> Any:
        if all(pair[number] is None for pair in pairs.values()):
            return None
        given = map_arg((args, kwargs), lambda x: writer.filled(pairs[x][number], x) if x in pairs else x)
        return writer.emit_part(*given)

    return Pair(part(0), part(1))


def pad(writer: Writer, x: Any, sides: Any, *options: Any) -> Pair:
    parts = []
    for part, name in zip(writer.pair(x), ("real", "imag"), strict=True):
        numbers = [getattr(item, name) if isinstance(item, int | float | complex) else item for item in options]
        parts.append(writer.emit(writer.node.target, writer.filled(part, x), sides, *numbers))
    return Pair(*parts)


def cast(writer: Writer, x: Any, *, dtype: Any = None, **options: Any) -> Any:
    pair = writer.pair(x)
    if dtype is not None and not dtype.is_complex:
        return writer.emit(writer.node.target, writer.filled(pair.real, x), dtype=dtype, **options)
    dtype = writer.node.meta["val"].dtype.to_real()
    return Pair(*(part and writer.emit(writer.node.target, part, dtype=dtype, **options) for part in pair))


def blank(writer: Writer, x: Any, *args: Any, **kwargs: Any) -> Any:
    """What reads only the shape of a tensor."""
    kwargs["dtype"] = writer.node.meta["val"].dtype
    made = writer.emit(writer.node.target, writer.filled(writer.pair(x).real, x), *args, **kwargs)
    return writer.parts(made) if kwargs["dtype"].is_complex else made


def view_as_real(writer: Writer, x: Any) -> fx.Node:
    parts = (writer.filled(part, x) for part in writer.pair(x))
    return writer.emit(aten.cat.default, [writer.emit(aten.unsqueeze.default, part, -1) for part in parts], -1)


def view_as_complex(writer: Writer, x: Any) -> Pair:
    return Pair(*(writer.emit(aten.select.int, x, -1, number) for number in range(2)))


def view(writer: Writer, x: Any, size: Any) -> Any:
    """Another shape, or the same memory as another dtype."""
    if not isinstance(size, torch.dtype):
        return each(writer, x, size)
    if size.is_complex == is_complex(x):
        return cast(writer, x, dtype=size)
    if not size.is_complex:
        return writer.emit(aten.view.default, view_as_real(writer, x), list(writer.node.meta["val"].shape))
    shape = [*writer.node.meta["val"].shape, 2]
    return view_as_complex(writer, writer.emit(aten.view.default, x, shape))


def conj(writer: Writer, x: Any) -> Pair:
    real, imag = writer.pair(x)
    return Pair(real, writer.times(imag, -1))


def absolute(writer: Writer, x: Any) -> fx.Node:
    return writer.emit(aten.hypot.default, *(writer.filled(part, x) for part in writer.pair(x)))


def angle(writer: Writer, x: Any) -> fx.Node:
    real, imag = (writer.filled(part, x) for part in writer.pair(x))
    return writer.emit(aten.atan2.default, imag, real)


def polar(writer: Writer, size: Any, angle: Any) -> Pair:
    return Pair(*(writer.times(size, writer.emit(f.default, angle)) for f in (aten.cos, aten.sin)))


def add(writer: Writer, x: Any, other: Any, alpha: Any = 1) -> Pair:
    return Pair(*(writer.plus(*parts, alpha) for parts in zip(writer.pair(x), writer.pair(other), strict=True)))


def subtract(writer: Writer, x: Any, other: Any, alpha: Any = 1) -> Pair:
    return add(writer, x, other, -alpha)


def multiply(writer: Writer, x: Any, other: Any) -> Pair:
    return writer.product(writer.times, writer.pair(x), writer.pair(other))


def divide(writer: Writer, x: Any, other: Any) -> Pair:
    """The quotient x / (c + id) = x (c - id) / (c^2 + d^2)."""
    if not isinstance(other, fx.Node):
        return writer.product(writer.times, writer.pair(x), writer.pair(1 / other))
    c, d = writer.pair(other)
    square = c if d is None else writer.plus(writer.times(c, c), writer.times(d, d))
    numerator = writer.pair(x) if d is None else writer.product(writer.times, writer.pair(x), conj(writer, other))
    return Pair(*(None if part is None else writer.emit(aten.div.Tensor, part, square) for part in numerator))


def matmul(writer: Writer, x: Any, other: Any) -> Pair:
    return writer.product(functools.partial(writer.emit, writer.node.target), writer.pair(x), writer.pair(other))


def affine(writer: Writer, x: Any, weight: Any, bias: Any = None, *options: Any) -> Pair:
    """A layer; its bias has an element for each channel."""

    def layer(part: Any, weight: Any) -> fx.Node:
        return writer.emit(writer.node.target, part, weight, None, *options)

    result = writer.product(layer, writer.pair(x), writer.pair(weight))
    if bias is None:
        return result
    after = [1] * (writer.node.meta["val"].dim() - 2 if options else 0)
    parts = (part and writer.emit(aten.view.default, part, [-1, *after]) for part in writer.pair(bias))
    return Pair(*map(writer.plus, result, parts))


def addmm(writer: Writer, x: Any, first: Any, second: Any, *, beta: Any = 1, alpha: Any = 1) -> Pair:
    times = functools.partial(writer.emit, aten.mm.default)
    product = writer.product(times, writer.pair(first), writer.pair(second))
    return Pair(*(writer.plus(writer.times(a, alpha), b, beta) for a, b in zip(product, writer.pair(x), strict=True)))


def fourier(writer: Writer, x: Any, axes: Sequence[int], norm: int, forward: bool) -> Pair:
    """A transform of complex numbers."""
    result = writer.pair(x)
    for axis in axes:
        units = writer.units(x, axis, writer.node.meta["val"].dtype.to_complex())
        matrix = writer.parts(writer.emit(aten._fft_c2c.default, units, [1], norm, forward))
        result = writer.product(functools.partial(writer.line, axis=axis), result, matrix)
    return result


def from_real(writer: Writer, x: Any, axes: Sequence[int], norm: int, onesided: bool) -> Pair:
    """A transform of real numbers; of one axis, the last, only half is left."""
    *others, last = axes
    units = writer.units(x, last, x.meta["val"].dtype)
    matrix = writer.parts(writer.emit(aten._fft_r2c.default, units, [1], norm, onesided))
    return fourier(writer, Pair(*(writer.line(x, part, last) for part in matrix)), others, norm, True)


def to_real(writer: Writer, x: Any, axes: Sequence[int], norm: int, size: int) -> Any:
    """A transform that gives real numbers, of half of the last axis."""
    *others, last = axes
    pair = fourier(writer, x, others, norm, False)
    units = writer.units(pair, last, writer.node.meta["val"].dtype.to_complex())
    lines = []
    for part, unit in zip(pair, (1, 1j), strict=True):
        matrix = writer.emit(aten._fft_c2r.default, writer.times(units, unit), [1], norm, size)
        lines.append(writer.line(part, matrix, last))
    return writer.plus(*lines)


LINEAR = (
    *MOVING,
    *("getitem", "clone", "alias", "cat", "stack", "unbind", "index_put", "scatter_add", "where", "resolve_conj"),
    *("resolve_neg", "neg", "_neg_view", "sum", "mean", "cumsum"),
)
# By the name of the operator; arguments are nodes and numbers, the results pairs or nodes.
RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(LINEAR, each),
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    "_to_copy": cast,
    **dict.fromkeys(
        (f"{prefix}{kind}{suffix}" for kind in BLANK for prefix, suffix in (("", "_like"), ("new_", ""))), blank
    ),
    "view": view,
    "complex": lambda writer, real, imag: Pair(real, imag),
    "view_as_complex": view_as_complex,
    "view_as_real": view_as_real,
    "real": lambda writer, x: writer.filled(writer.pair(x).real, x),
    "imag": lambda writer, x: writer.filled(writer.pair(x).imag, x),
    **dict.fromkeys(("_conj", "_conj_physical", "conj_physical"), conj),
    "polar": polar,
    "abs": absolute,
    "angle": angle,
    # Arithmetic
    "add": add,
    "sub": subtract,
    "rsub": lambda writer, x, other, alpha=1: add(writer, other, x, -alpha),
    "mul": multiply,
    "div": divide,
    "reciprocal": lambda writer, x: divide(writer, 1, x),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), matmul),
    **dict.fromkeys(("linear", "convolution", "_convolution"), affine),
    "addmm": addmm,
    "_fft_c2c": fourier,
    "_fft_r2c": from_real,
    "_fft_c2r": to_real,
}
