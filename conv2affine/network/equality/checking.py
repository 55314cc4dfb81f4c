"""The public function that compares two networks: modules, programs and files in any mixture."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from conv2affine.network.equality.compare import Comparison, compare
from conv2affine.network.equality.side import Side, naming
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.passes.ends import slices
from conv2affine.network.proof.box import Box, BoxBounds, read_box
from conv2affine.network.torch.importing.importer import import_torch
from conv2affine.network.torch.models.held import joined_names
from conv2affine.network.torch.models.intake import ExampleInputs, Model, hold
from conv2affine.network.torch.models.program import tensors
from conv2affine.network.torch.models.surroundings import alone
from conv2affine.network.torch.models.unchanged import unchanged
from conv2affine.network.torch.modules import BoxChain
from conv2affine.network.torch.verifying.mixing import check_samples
from conv2affine.network.torch.verifying.runs import SAMPLES, run
from conv2affine.network.vectors import check_floats, join_inputs, with_vectors

if TYPE_CHECKING:
    from onnx import ModelProto  # optional


@alone
def check(
    a: Model | ModelProto, b: Model | ModelProto, x: ExampleInputs, *, box: BoxBounds | None = None
) -> Comparison:
    """Whether two networks are equal: whether they compute the same, up to rounding, for all inputs.

        |b(x) - a(x)| <= bound    for all x in the box

    Args:
        a: A model as `to_linear_network` takes it, or an ONNX model or its file.
        b: Likewise. What both compute it in may differ: the inputs are numbers that the dtypes of both have.
        x: Example inputs: a tensor, a tuple of tensors, or a dict of them by name, batch first. A dict also gives
            the sizes that a file leaves open. What `to_mlp` made of several inputs gets the vector of all.
        box: (low, high) as in `to_mlp`: look at inputs in this box only, and bound the difference there. Default: None,
            for all inputs.

    Returns:
        A `Comparison`. Its `verdict` is "different", with a `witness`, an input where their outputs differ by more than
        rounding, and the `origin`, the first pieces where they part; "equal", if both have the same steps, and pieces
        with the same entries up to their rounding; "within", if neither is known, with a `bound` on the box; or
        "undecided" otherwise. Names, order, and how affine operators follow one another do not matter.

    Raises:
        TypeError: As `to_linear_network`.
        ValueError: As `to_linear_network`; or if the inputs of a and b have other sizes, or are integers.
        NotImplementedError: As `to_linear_network`, or `onnx.convert`.
        MemoryError: If the matrices of all pieces need more memory than is left.

    Example:
        >>> conv, norm = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4)
        >>> model = torch.nn.Sequential(conv, norm, torch.nn.ReLU()).eval()
        >>> fused = torch.nn.Sequential(torch.nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval()), torch.nn.ReLU())
        >>> check(model, fused, torch.rand(1, 1, 6, 6)).verdict
        'equal'
        >>> with torch.no_grad():
        ...     _ = fused[0].weight[2, 0, 1, 1].add_(1e-3)
        >>> result = check(model, fused, torch.rand(1, 1, 6, 6))
        >>> result.verdict, result.origin
        ('different', (('0', '1'), ('0',)))
    """
    models: tuple[Any, Any] = a, b
    files = [*map(_is_file, models)]
    if any(files):
        from conv2affine.onnx.checking import file_side  # needs onnx
    tensors(x, "x", or_dict=True)
    sizes = {name: (1, *each.shape[1:]) for name, each in x.items()} if isinstance(x, Mapping) else None
    found: list[Any] = [None, None]
    # A module takes inputs by name in any order, and a file or a chain in its own.
    in_any_order = [isinstance(model, nn.Module) and not joined_names(model) for model in models]
    for number in sorted((0, 1), key=in_any_order.__getitem__):
        with naming("ab"[number]):
            found[number] = file_side(models[number], sizes, "x") if files[number] else _side(models[number], x)
        names = found[number][1]
        if isinstance(x, Mapping) and names.keys() == x.keys():
            x = {name: x[name] for name in names}
    sides, (names, others) = zip(*found, strict=True)
    if isinstance(x, Mapping) and names.keys() == others.keys() and list(names) != list(others):
        raise ValueError(
            f"a and b must take their inputs in one order, and take {', '.join(names)} and {', '.join(others)}; pass x "
            "as a tuple to compare them by their places"
        )
    names = names or others
    given = None if box is None else read_box(box, names)
    if isinstance(x, Mapping):
        x = tuple(x[name] for name in (names if names.keys() == x.keys() else x))
    inputs = [each[:SAMPLES] for each in tensors(x, "x")]
    if all(files) and [prod(each.shape[1:]) for each in inputs] != [*map(prod, names.values())]:  # a module runs on x
        shown = ", ".join(f"{name} of {tuple(shape)}" for name, shape in names.items())
        got = ", ".join(str((1, *each.shape[1:])) for each in inputs)
        raise ValueError(f"x must have the inputs of a, which are {shown} for one sample, got {got}")
    return compare(sides, given, list(names.values()), join_inputs(inputs))


def _is_file(model: Any) -> bool:
    """Whether a model is one of ONNX."""
    if isinstance(model, str | Path):
        return Path(model).suffix in (".onnx", ".gz")
    return type(model).__name__ == "ModelProto"


def _join(chain: Any, x: Any) -> tuple[Tensor, dict[str, tuple[int, ...]]]:
    """The vector of several inputs, and their shapes, of none if x is that vector."""
    names = chain.input_names
    if isinstance(x, Mapping):
        if x.keys() != set(names):
            raise ValueError(f"x ({', '.join(x)}) must have the names of its inputs: {', '.join(names)}; or be a tuple")
        x = tuple(x[name] for name in names)
    parts = tensors(x, "x")
    if len(parts) == 1:
        return parts[0], {}
    sizes, taken = [prod(part.shape[1:]) for part in parts], [part.stop - part.start for part in chain.input_slices]
    if sizes != taken:
        shown = ", ".join(f"{name} of {size}" for name, size in zip(names, taken, strict=True))
        raise ValueError(f"x must have its inputs, {shown} elements a sample, or be their vector, got {sizes}")
    shapes = {name: (1, *part.shape[1:]) for name, part in zip(names, parts, strict=True)}
    return torch.cat([part.reshape(len(part), -1) for part in parts], 1), shapes


def _side(model: Any, x: Any) -> tuple[Side, dict[str, tuple[int, ...]]]:
    """A module as a side, and the shapes of its inputs."""
    x, shapes = _join(model, x) if joined_names(model) else (x, {})
    module, inputs = hold(model, x, "x")
    dtypes = {each.dtype for each in module.parameters() if each.is_floating_point()}
    if len(dtypes) == 1:
        [dtype] = dtypes
        inputs = tuple(each.to(dtype) if each.is_floating_point() else each for each in inputs)
    network = import_torch(module, inputs)
    check_floats(network, "a comparison", "; pass x.float(), if it begins with a cast")
    values = network.graph.inputs
    parts, device = slices(values), network.device

    def own(point: Array) -> Array:
        given = [
            torch.tensor(point[part], dtype=dtype, device=device).view(value.shape)
            for part, dtype, value in zip(parts, network.input_dtypes, values, strict=True)
        ]
        with unchanged(module), torch.no_grad():
            outputs = [output.double().cpu().flatten().numpy() for output in run(module, given, True)]
        return np.concatenate(outputs)

    with unchanged(module), torch.no_grad():
        check_samples(module, inputs, network.dtypes)
    eps = max(torch.finfo(dtype).eps for dtype in network.dtypes)
    graph = with_vectors(network, "a comparison").graph
    box = ""
    if isinstance(module, BoxChain) and module.where:
        low, high = module.box
        box = Box(low.numpy(), high.numpy(), ()).json()
    side = Side(graph, network.dtype, eps, network.input_dtypes, own, box)
    return side, shapes or {value.name: value.shape for value in values}
