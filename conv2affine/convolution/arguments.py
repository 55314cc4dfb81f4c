"""What users pass: its types, its sizes as integers, and the refusal of anything but a convolution layer or weight."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

Sizes = int | Iterable[int]
InputSize = Sizes | Tensor
Padding = Sizes | Iterable[Iterable[int]] | str
Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
# The methods that define the convolution: a subclass that overrides one may compute something else.
ARITHMETIC = ("forward", "_conv_forward", "_output_padding")
# Copied only: PyTorch does not add them. float8_e8m0fnu is in neither tuple, because it has no zero.
COPIED_DTYPES = (
    *(torch.bool, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
)
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *COPIED_DTYPES,
)
INT64_MAX = 2**63 - 1
# Modules that wrap a layer, by a part of their class's full name, and what to pass instead.
WRAPPERS = {
    "quantized": "convert the float layer it was made from, or pass its integers to conv_matrix",
    "OptimizedModule": "torch.compile made it: pass its _orig_mod",
    "DataParallel": "pass its module attribute, the layer that it wraps",
    "torch.jit": "pass the layer that it was scripted or traced from",
}


def check_layer(conv: object) -> None:
    """Refuse everything but PyTorch's six convolution layers, and give the reason."""
    name = f"{type(conv).__module__}.{type(conv).__qualname__}"
    base = next((layer for layer in LAYERS if isinstance(conv, layer)), None)
    if base is None:
        names = ", ".join(layer.__name__ for layer in LAYERS)
        given = f"the class {conv.__name__}" if isinstance(conv, type) else name
        raise TypeError(f"conv must be one of torch.nn's {names}, got {given}; {_advice(conv, name)}")
    for method in ARITHMETIC:
        changed = getattr(type(conv), method, None) is not getattr(base, method, None)
        if changed or method in vars(conv):
            raise TypeError(
                f"conv ({name}) overrides {method}, so it may compute something else than {base.__name__}; pass a "
                f"plain {base.__name__} with the same weights, or call conv_matrix or conv_transpose_matrix with the "
                "weight that it applies"
            )
    # Not by is_lazy(): that would break the graph of torch.compile.
    if any(isinstance(parameter, UninitializedParameter) for parameter in vars(conv)["_parameters"].values()):
        raise ValueError(f"conv ({name}) is lazy and has no weights yet; run a batch through it first")


def _advice(conv: object, name: str) -> str:
    """What to do with an object that is not a convolution layer."""
    if isinstance(conv, Tensor):
        return "pass a layer; with a weight, pass a Geometry in place of input_size, or call conv_matrix"
    if isinstance(conv, type):
        return "pass a layer, not its class"
    if not isinstance(conv, nn.Module):
        return "pass a layer"
    for part, advice in WRAPPERS.items():
        if part in name:
            return advice
    if hasattr(conv, "base_layer"):  # the adapters of peft: LoRA and its relatives
        return "merge its low-rank update into its base_layer (peft: merge()), and pass base_layer"
    return (
        "with an example input x, batch first, to_linear(module, x), to_linear_network(module, x) and plan(module, x) "
        "take any module"
    )


def is_network(model: object, example_inputs: object) -> bool:
    """Whether a call is for the network side: with example inputs, and of a module that is no convolution layer."""
    examples = example_inputs if isinstance(example_inputs, tuple | list) else [example_inputs]
    if isinstance(model, Tensor) or not examples or not all(map(_is_example, examples)):
        return False
    try:
        check_layer(model)
    except TypeError:
        return True
    return False


def _is_example(x: object) -> bool:
    """A tensor, a dict of them, or an array, which the network side refuses by name."""
    return isinstance(x, Tensor | Mapping) or len(getattr(x, "shape", ())) > 0


def check_weight(weight: object) -> None:
    """Refuse a weight without elements that can be copied."""
    if not isinstance(weight, Tensor):
        is_layer = isinstance(weight, nn.Module)
        advice = "call to_matrix(layer, input_size)" if is_layer else "pass torch.as_tensor(weight)"
        raise TypeError(f"weight must be a tensor, got {type(weight).__name__}; {advice}")
    if weight.layout is not torch.strided:
        raise TypeError(f"weight must be a strided tensor, got layout {weight.layout}; pass weight.to_dense()")
    if weight.dtype in DTYPES:
        return
    advice = "weight.float()"
    if weight.dtype is torch.complex32:
        advice = "weight.to(torch.complex64)"
    elif weight.is_quantized:
        advice = "weight.dequantize(), or its integers, weight.int_repr()"
    raise TypeError(f"weight must have a dtype of {', '.join(map(str, DTYPES))}, got {weight.dtype}; pass {advice}")


def input_sizes(value: InputSize, in_channels: int, dims: int) -> tuple[int, ...]:
    """The input size per axis, from sizes or from an example input."""
    if isinstance(value, Tensor) and value.dim() > 1:
        if value.dim() != dims + 2 or value.shape[1] != in_channels:
            axes = ", ".join(f"I_{axis}" for axis in range(1, dims + 1))
            advice = f"; add the batch with unsqueeze(0), or pass x.shape[-{dims}:]" if value.dim() == dims + 1 else ""
            raise ValueError(
                f"input_size, if it is an example input, must have shape (batch, {in_channels}, {axes}), got shape "
                f"{tuple(value.shape)}{advice}"
            )
        value = value.shape[2:]
    return integers("input_size", value, dims, at_least=1)


def integers(name: str, value: object, dims: int, *, at_least: int) -> tuple[int, ...]:
    """`value` as `dims` integers; a single one stands for all axes."""
    try:
        values: tuple[Any, ...] = tuple(value) if is_iterable(value) else (value,) * dims
    except TypeError:  # a tensor of no dimensions, which is an instance of Iterable
        values = (value,) * dims
    if len(values) != dims:
        advice = "; leave out batch and channels" if name == "input_size" and dims < len(values) <= dims + 2 else ""
        if name == "input_size" and len(getattr(value, "shape", ())) > 1:
            advice = "; an example input must be a tensor: pass torch.from_numpy(x), or x.shape[2:]"
        if name == "padding" and len(values) == 2 * dims:
            advice = "; for two sides, pass a (left, right) pair per axis"
        raise ValueError(f"{name} ({shown(value)}) must have one entry per axis, that is {dims}, or be an int{advice}")
    try:
        numbers = tuple(map(operator.index, values))
    except TypeError:
        raise TypeError(f"{name} ({shown(value)}) must be integers; pass an int, or one per axis") from None
    if min(numbers) < at_least or max(numbers) > INT64_MAX:
        raise ValueError(f"{name} ({shown(value)}) must be >= {at_least}, and fit into 64 bits")
    return numbers


def is_iterable(value: object) -> TypeGuard[Iterable[Any]]:
    """isinstance(value, Iterable), the common types first: it takes a tenth of the time of a small matrix."""
    return type(value) is tuple or (type(value) is not int and isinstance(value, Iterable))


def shown(value: object) -> str:
    """A value as error messages show it; only the shape of a tensor or an array.

    Example:
        >>> shown((1, torch.zeros(2, 3))), shown({"x": torch.zeros(2)})
        ('(1, Tensor of shape (2, 3))', '{x: Tensor of shape (2,)}')
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {shown(each)}" for name, each in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(shown, value)) + "," * (len(value) == 1) + ")"
    shape = getattr(value, "shape", ())
    return f"{type(value).__name__} of shape {tuple(shape)}" if shape else repr(value)
