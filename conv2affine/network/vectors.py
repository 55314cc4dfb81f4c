"""The public functions whose results take and return one vector per sample: a chain, and a single linear layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from conv2affine.network.graph import Graph, Piece, Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Array, Selection
from conv2affine.network.passes.chain import Layer, to_graph
from conv2affine.network.passes.ends import join_ends, slices
from conv2affine.network.passes.merge import merge as merge_pieces
from conv2affine.network.passes.simplify import simplify
from conv2affine.network.prepare import DTYPES, check_memory, in_mode_of, one_of, reason_of, to_layers
from conv2affine.network.progress import progress
from conv2affine.network.proof.box import Box, BoxBounds, read_box
from conv2affine.network.report import describe, describe_layers
from conv2affine.network.torch.importing.importer import TorchNetwork, import_torch
from conv2affine.network.torch.layers import LAYOUTS, NetworkLayout, finite_layer
from conv2affine.network.torch.models.held import class_name
from conv2affine.network.torch.models.intake import ExampleInputs, Model, hold
from conv2affine.network.torch.models.surroundings import alone
from conv2affine.network.torch.modules import BoxChain
from conv2affine.network.torch.verifying.verify import verify

Module = TypeVar("Module", bound=nn.Module)
NOT_CAST = " and does more than cast it; let it begin with x.float()"


@alone
def to_mlp(
    model: Model,
    example_inputs: ExampleInputs,
    *,
    layout: NetworkLayout = "auto",
    dtype: torch.dtype | None = None,
    box: BoxBounds | None = None,
) -> nn.Sequential:
    """The same network as a plain chain of linear layers and ReLUs, residual connections and max pooling included.

        mlp(x) == model(x).flatten(1)

    Several inputs are joined into one vector, in order, and so are several outputs: for inputs a, b and outputs c, d

        mlp(cat([a.flatten(1), b.flatten(1)], 1)) == cat([c.flatten(1), d.flatten(1)], 1)

    A chain is larger than what `to_linear_network` makes, mostly where there is max pooling or a residual connection:
    `plan(model, x, form="mlp")` shows its size first.

    Args:
        model: A module whose steps are affine or piecewise linear, in evaluation mode.
        example_inputs: As in `to_linear_network`. If the model casts them before it computes anything else, from
            integers, such as images of uint8, or to a wider floating-point dtype, the chain takes what they are cast
            to: `mlp(x.float())`.
        layout: As in `to_linear_network`.
        dtype: As in `to_linear_network`.
        box: (low, high), if the chain is for inputs low <= x <= high only: it is smaller then, has bounds, and is not
            the model for any other input. Each is a number, a tensor or array that broadcasts to one sample of the
            input, or, for several inputs, a tuple of these or a dict by name; or the vector of all elements, as `box`
            of the result has; all finite. Default: None, for all inputs.

    Returns:
        An `nn.Sequential` of one `nn.Flatten`, then alternately `nn.Linear` or `SparseLinear` and `nn.ReLU`, the last a
        linear layer. Its attributes `input_slices` and `output_slices` are tuples of a slice for each input and
        output: `mlp(x)[:, mlp.output_slices[1]]` is the second output; and `input_names` has the names of the inputs.
        `plan` is a table of its layers.
        With a box, `box` is the pair of float64 tensors (elements of all inputs,), and `bounds` has for each linear
        layer the pair (low, high) of float64 tensors (rows,): what the layer computes is never outside of them, for any
        input in the box. Roundings in `dtype` are included, in any order of summation, but not other algorithms than
        sums of products, such as TF32. A chain that was in a narrower dtype, as after `mlp.half()`, has no `bounds`;
        other changes of the weights are not seen.

    Raises:
        NotImplementedError: If a step is neither affine nor piecewise linear; the message names it and its module.
        TypeError: If `box` is no pair of real numbers, tensors or arrays.
        ValueError: As `to_linear_network`. If `box` has another shape than the inputs, is not finite, or is empty; or
            if numbers may overflow in it.
        MemoryError: As `to_linear_network`.
        RuntimeError: As `to_linear_network`.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Hardtanh())
        >>> to_mlp(model, torch.rand(1, 1, 6, 6))
        Sequential(
          (0): Flatten(start_dim=1, end_dim=-1)
          (1): Linear(in_features=36, out_features=48, bias=True)
          (2): ReLU()
          (3): Linear(in_features=48, out_features=32, bias=True)
          (4): ReLU()
          (5): Linear(in_features=32, out_features=16, bias=True)
          (6): ReLU()
          (7): Linear(in_features=16, out_features=8, bias=True)
        )
    """
    model, inputs = hold(model, example_inputs)
    original, network, layers, dtype, within = prepare_chain(model, inputs, layout, dtype, box)
    plan = dataclasses.replace(describe_layers(layers, dtype, layout), box=str(within or ""))
    check_memory(plan)
    modules: list[nn.Module] = []
    with progress(len(layers)) as each:
        for item in layers:
            name = item.origin[0] if item.origin else "carried"
            each(name)
            modules += [finite_layer(name, item.matrix(), item.bias, dtype, layout), nn.ReLU()]
    kind = nn.Sequential if within is None else BoxChain
    mlp = kind(nn.Flatten(), *modules[:-1]).to(network.device)
    mlp.plan = plan  # type: ignore[assignment]
    if within is not None and isinstance(mlp, BoxChain):
        bounds = tuple(_tensors(*interval) for item in layers if (interval := item.bounds))
        mlp.describe(str(within), _tensors(within.low, within.high), bounds, dtype)
        points = within.points([x.dtype for x in inputs])
        inputs = tuple(point.flatten(0, 1).to(x.device) for point, x in zip(points, inputs, strict=True))
    network = dataclasses.replace(network, graph=to_graph(layers))
    verify(model, mlp, inputs, network, dtype, flat=True, only=within is not None)
    return in_mode_of(model, _with_slices(mlp, original.graph))


def prepare_chain(
    model: nn.Module,
    inputs: Sequence[Tensor],
    layout: NetworkLayout,
    dtype: torch.dtype | None,
    box: BoxBounds | None = None,
) -> tuple[TorchNetwork, TorchNetwork, list[Layer], torch.dtype, Box | None]:
    """The network as it is and with one vector at each end, the layers of its chain, their dtype, and the box."""
    one_of("layout", layout, LAYOUTS)
    one_of("dtype", dtype, DTYPES)
    original = import_torch(model, inputs, floats=True)
    network = with_vectors(original, "a chain")
    dtype = dtype or network.dtype
    within = None if box is None else read_box(box, {value.name: value.shape for value in original.graph.inputs})
    limits = None if within is None else within.rounded(dtype, *network.input_dtypes)
    layers = to_layers(simplify(network.graph), dtype, limits)
    check_floats(network, "a chain")
    return original, network, layers, dtype, within


def _tensors(*arrays: Array) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array.copy()) for array in arrays)


@alone
def module_to_linear(module: Model, example_input: Any, *, layout: NetworkLayout = "dense") -> nn.Linear:
    """`to_linear` of a module that is affine in its input, or in a tuple of inputs, which become one vector.

        fc(x.flatten(1)) == module(x).flatten(1)

    Example:
        >>> module = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 8, 3), nn.AvgPool2d(2))
        >>> module_to_linear(module, torch.rand(1, 3, 8, 8))
        Linear(in_features=192, out_features=128, bias=True)
    """
    one_of("layout", layout, LAYOUTS)
    module, inputs = hold(module, example_input, "input_size")
    original = import_torch(module, inputs, floats=True)
    network = with_vectors(original, "a linear layer")
    graph = merge_pieces(simplify(network.graph), "always")
    map: AffineMap[Value] = AffineMap.identity(graph.inputs[0], graph.inputs[0].size)
    for node in graph.nodes:
        if not isinstance(node, Piece):
            raise TypeError(
                f"module ({class_name(module)}) must be affine in its input, and {', '.join(node.origin)} "
                f"({node.kind}) is not{reason_of(node)}; to_linear_network converts the affine pieces around such steps"
            )
        map = node.map  # the whole map: the graph has one piece at most
    check_floats(network, "a linear layer")
    check_memory(describe(graph, network.dtype, layout))
    [source] = graph.inputs
    matrix = map.terms.get(source, Selection(np.full(map.size, -1), source.size))
    bias = map.bias if map.bias.any() else None
    fc = finite_layer(class_name(module), matrix, bias, network.dtype, layout).to(network.device)
    network = dataclasses.replace(network, graph=graph)
    verify(module, nn.Sequential(nn.Flatten(), fc), inputs, network, network.dtype, flat=True)
    return in_mode_of(module, _with_slices(fc, original.graph))


def join_inputs(inputs: Sequence[Tensor]) -> Array:
    """(samples, elements): one vector of all inputs for each sample."""
    flat = [x.detach().reshape(len(x), -1).double().cpu() for x in inputs]
    joined: Array = torch.cat(flat, 1).numpy()
    return joined


def with_vectors(network: TorchNetwork, result: str) -> TorchNetwork:
    """The network with one vector as input and one as output; refuses what cannot be part of these."""
    for constant in network.constants:
        raise ValueError(
            f"{result} has outputs of one dtype, {network.dtype}, and the model has a constant output of "
            f"{constant.dtype}; to_linear_network keeps it"
        )
    inputs = network.graph.inputs
    if len(inputs) == 1 and len(inputs[0].shape) == 1:
        raise ValueError(f"{result} takes vectors, and the model takes numbers; let it take x of shape (batch, 1)")
    graph = join_ends(network.graph)
    leaf = graph.outputs[0]
    return dataclasses.replace(network, graph=graph, leaves=[leaf], structure=pytree.tree_structure(leaf))


def _with_slices(result: Module, graph: Graph) -> Module:
    """The result, with attributes that name the model's inputs, and say where they and the outputs are in vectors."""
    result.input_names = tuple(value.name for value in graph.inputs)  # type: ignore[assignment]
    result.input_slices = slices(graph.inputs)  # type: ignore[assignment]
    result.output_slices = slices(graph.outputs)  # type: ignore[assignment]
    return result


def check_floats(network: TorchNetwork, result: str, advice: str = NOT_CAST) -> None:
    """Refuse integer inputs that are not cast."""
    for dtype in network.input_dtypes:
        if not dtype.is_floating_point:
            raise ValueError(f"{result} takes floating-point numbers, and the model takes {dtype}{advice}")
