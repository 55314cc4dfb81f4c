"""The public functions: a network of linear layers, and its plan."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import torch
from torch import fx, nn
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY

from conv2affine.network.graph import Piece, Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Array, Matrix, Selection
from conv2affine.network.passes.chain import to_graph, write_out
from conv2affine.network.passes.merge import Merge
from conv2affine.network.passes.merge import merge as merge_pieces
from conv2affine.network.passes.simplify import simplify
from conv2affine.network.prepare import (
    DTYPES,
    check_floats,
    check_memory,
    in_mode_of,
    memory_refusal,
    one_of,
    prepare,
    prepare_chain,
    reason_of,
    with_slices,
    with_vectors,
)
from conv2affine.network.progress import progress
from conv2affine.network.report import NetworkPlan, describe, describe_layers
from conv2affine.network.torch.exporter import export_torch
from conv2affine.network.torch.importing.importer import import_torch
from conv2affine.network.torch.layers import LAYOUTS, Layout, layer
from conv2affine.network.torch.models.held import class_name
from conv2affine.network.torch.models.intake import Model, hold
from conv2affine.network.torch.models.surroundings import alone, on_cpu
from conv2affine.network.verify import verify

__all__ = ["module_to_linear", "plan_network", "to_linear_network", "to_mlp"]


@alone
@on_cpu
def to_linear_network(
    model: Model,
    example_inputs: Any,
    *,
    layout: Layout = "auto",
    merge: Merge = "auto",
    max_pool: Literal["max", "relu"] = "max",
    dtype: torch.dtype | None = None,
) -> fx.GraphModule:
    """The same network with every affine piece as one linear layer.

        net(x) == model(x)

    Args:
        model: Any module that `torch.export` takes, in evaluation mode; each sample of a batch by itself. Or an
            `ExportedProgram`, a TorchScript module, or the path of a file of either.
        example_inputs: A tensor, a tuple of tensors, or a dict of them by name, batch first, as `model` takes them.
        layout: Of the weights: "dense" or `torch.strided`; "sparse" or `torch.sparse_csr`; or "auto", which is dense
            where that is small or hardly larger. Default: "auto".
        merge: Which affine operators that follow one another become one layer: "auto" where the product has no more
            entries than its factors together; "always"; or "never". Default: "auto".
        max_pool: What max pooling becomes: "max" keeps it, "relu" makes linear layers and ReLUs of it. Default: "max".
        dtype: Of the layers; they are computed in float64 and rounded once. Default: that in which `model` computes
            most. What it computes in other dtypes is kept as it is.

    Returns:
        A `torch.fx.GraphModule` that takes and gives what `model` does, for a batch of any size: `nn.Linear` and
        `SparseLinear` layers named after the modules whose work they do, and every nonlinear step as it was, on flat
        vectors, or on tensors of its own shape. Its parameters require gradients if any of the model's does. Its
        attribute `plan` is a table of its layers and steps.

    Raises:
        TypeError: If `model` is no module, or an input no real dense tensor.
        FileNotFoundError: If `model` is the path of a file that is not there.
        ValueError: If the model depends on chance or mixes the samples of a batch, as in training mode; the message
            names the operator. If an output is not batch first, or an input, a weight or a result is not finite where
            it has to be. If the model does not run on the example.
        NotImplementedError: If `torch.export` fails, or elements are selected by values of the inputs.
        MemoryError: If there is not enough memory left; the message has the table.
        RuntimeError: If the result is not what the model computes; checked on the example and on random inputs.

    Example:
        >>> conv, head = nn.Conv2d(3, 8, 3), nn.Linear(288, 10)
        >>> model = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), head).eval()
        >>> x = torch.rand(5, 3, 8, 8)
        >>> net = to_linear_network(model, x)
        >>> torch.allclose(net(x), model(x), atol=1e-5)
        True
        >>> print(net.plan)
        from   is           matrix  entries      dense    sparse  layout
        0, 1   computed  288 x 192    7,776  221.18 kB  63.36 kB  dense
        2      relu            288
        4      copied     10 x 288    2,880   11.52 kB  23.08 kB  dense
        total                        10,656  232.70 kB  86.45 kB  232.70 kB
    """
    model, inputs = hold(model, example_inputs)
    network, dtype = prepare(model, inputs, layout, merge, max_pool, dtype)
    plan = describe(network.graph, dtype, layout)
    check_memory(plan)
    with progress(len(plan.layers)) as each:

        def make(name: str, matrix: Matrix, bias: Array | None) -> nn.Linear:
            each(name)
            return layer(matrix, bias, dtype, layout)

        net = export_torch(network, lambda each: dtype if each is network.dtype else each, make)
    net.plan = plan  # type: ignore[assignment]
    net.meta[_USER_PRESERVED_ATTRIBUTES_KEY] = {"plan": plan}  # for copies
    verify(model, net, inputs, network, dtype)
    return in_mode_of(model, net)


@alone
@on_cpu
def to_mlp(
    model: Model, example_inputs: Any, *, layout: Layout = "auto", dtype: torch.dtype | None = None
) -> nn.Sequential:
    """The same network as a plain chain of linear layers and ReLUs, residual connections and max pooling included.

        mlp(x) == model(x).flatten(1)

    Several inputs are one vector, in their order, and so are several outputs: for inputs a, b and outputs c, d

        mlp(cat([a.flatten(1), b.flatten(1)], 1)) == cat([c.flatten(1), d.flatten(1)], 1)

    Args:
        model: A module whose steps are affine or piecewise linear, in evaluation mode.
        example_inputs: A tensor or a tuple of tensors, batch first, as `model` takes them. If these are whole numbers
            that the model casts before anything else is computed of them, as images of uint8, the chain takes them as
            floating: `mlp(x.float())`.
        layout: As in `to_linear_network`.
        dtype: As in `to_linear_network`.

    Returns:
        An `nn.Sequential` of one `nn.Flatten`, then `nn.Linear` or `SparseLinear` and `nn.ReLU` by turns, the last a
        linear layer. Its attributes `input_slices` and `output_slices` are tuples of a slice for each input and
        output: `mlp(x)[:, mlp.output_slices[1]]` is the second output. `plan` is a table of its layers.

    Raises:
        NotImplementedError: If a step is neither affine nor piecewise linear; the message names it and its module.
        ValueError: As `to_linear_network`.
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
    original, network, layers, dtype = prepare_chain(model, inputs, layout, dtype)
    plan = describe_layers(layers, dtype, layout)
    check_memory(plan)
    modules: list[nn.Module] = []
    with progress(len(layers)) as each:
        for item, matrix, bias in write_out(layers):
            each(item.origin[0] if item.origin else "carried")
            modules = [layer(matrix, bias, dtype, layout), nn.ReLU(), *modules]
    mlp = nn.Sequential(nn.Flatten(), *modules[:-1]).to(network.device)
    mlp.plan = plan  # type: ignore[assignment]
    network = dataclasses.replace(network, graph=to_graph(layers))
    verify(model, mlp, inputs, network, dtype, flat=True)
    return in_mode_of(model, with_slices(mlp, original.graph))


@alone
@on_cpu
def module_to_linear(
    module: Model, example_input: Any, *, layout: Layout = "dense", dtype: torch.dtype | None = None
) -> nn.Linear:
    """The fully-connected layer that is equivalent to a module that is affine in its input.

        fc(x.flatten(1)) == module(x).flatten(1)

    Args:
        module: Any module that is affine: padding and convolution, convolution and batch norm, pooling, ...
        example_input: A tensor, batch first; or a tuple of them, which the layer takes as one vector; whole numbers as
            in `to_mlp`.
        layout: "dense", "sparse", or "auto", as in `to_linear_network`. Default: "dense".
        dtype: As in `to_linear_network`.

    Returns:
        An `nn.Linear` or `SparseLinear`. `weight[r, c]` is what input element c contributes to output element r, both
        counted in C order over all axes but the batch's. Of several inputs or outputs, one comes after the other: the
        attributes `input_slices` and `output_slices` say where each is.

    Raises:
        TypeError: If the module is not affine; the message names its first nonlinear step.
        ValueError: As `to_mlp`.
        MemoryError: As `to_linear_network`.
        RuntimeError: As `to_linear_network`.

    Example:
        >>> module = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 8, 3), nn.AvgPool2d(2))
        >>> module_to_linear(module, torch.rand(1, 3, 8, 8))
        Linear(in_features=192, out_features=128, bias=True)
    """
    one_of("layout", layout, LAYOUTS)
    one_of("dtype", dtype, DTYPES)
    module, inputs = hold(module, example_input)
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
        map = node.map  # all of it: the graph has one piece at most
    check_floats(network, "a linear layer")
    dtype = dtype or network.dtype
    check_memory(describe(graph, dtype, layout))
    [source] = graph.inputs
    matrix = map.terms.get(source, Selection(np.full(map.size, -1), source.size))
    fc = layer(matrix, map.bias if map.bias.any() else None, dtype, layout).to(network.device)
    network = dataclasses.replace(network, graph=graph)
    verify(module, nn.Sequential(nn.Flatten(), fc), inputs, network, dtype, flat=True)
    return in_mode_of(module, with_slices(fc, original.graph))


@alone
@on_cpu
def plan_network(
    model: Model,
    example_inputs: Any,
    *,
    form: Literal["graph", "mlp"] = "graph",
    layout: Layout = "auto",
    merge: Merge = "auto",
    max_pool: Literal["max", "relu"] = "max",
    dtype: torch.dtype | None = None,
) -> NetworkPlan:
    """The table of what `to_linear_network` or `to_mlp` would make, before anything large is made.

    Args:
        model: As in `to_linear_network`.
        example_inputs: As in `to_linear_network`.
        form: "graph", the network of `to_linear_network`; or "mlp", the chain of `to_mlp`. Default: "graph".
        layout: As in `to_linear_network`.
        merge: In form "graph", as in `to_linear_network`.
        max_pool: In form "graph", as in `to_linear_network`.
        dtype: As in `to_linear_network`.

    Returns:
        A `NetworkPlan`: a row for each layer and step, with its modules, sizes, entries, and bytes per layout.

    Raises:
        TypeError: As `to_linear_network`.
        ValueError: As `to_linear_network`.
        NotImplementedError: As `to_mlp`, in form "mlp".

    Example:
        >>> plan_network(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()), torch.rand(1, 64, 224, 224)).bytes
        14722400260
    """
    one_of("form", form, ("graph", "mlp"))
    model, inputs = hold(model, example_inputs)
    if form == "mlp":
        _, _, layers, dtype = prepare_chain(model, inputs, layout, dtype)
        plan = describe_layers(layers, dtype, layout)
    else:
        network, dtype = prepare(model, inputs, layout, merge, max_pool, dtype)
        plan = describe(network.graph, dtype, layout)
    return dataclasses.replace(plan, refusal=memory_refusal(plan))
