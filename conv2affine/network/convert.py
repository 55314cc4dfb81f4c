"""The public functions: a network of linear layers, and its plan."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import fx, nn

from conv2affine.network.matrices.matrix import Array, Matrix
from conv2affine.network.passes.merge import Merge
from conv2affine.network.prepare import check_choices, check_memory, in_mode_of, memory_refusal, prepare
from conv2affine.network.progress import progress
from conv2affine.network.report import NetworkPlan, describe, describe_layers, with_plan
from conv2affine.network.torch.exporter import export_torch
from conv2affine.network.torch.layers import NetworkLayout, choose_layout, finite_layer
from conv2affine.network.torch.models.intake import ExampleInputs, Model, hold
from conv2affine.network.torch.models.surroundings import alone
from conv2affine.network.torch.verifying.verify import verify
from conv2affine.network.vectors import prepare_chain

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@alone
def to_linear_network(
    model: Model,
    example_inputs: ExampleInputs,
    *,
    layout: NetworkLayout = "auto",
    merge: Merge = "auto",
    max_pool: Literal["max", "relu"] = "max",
    dtype: torch.dtype | None = None,
    device_mesh: DeviceMesh | None = None,
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
        max_pool: "max" keeps max pooling, "relu" turns it into linear layers and ReLUs. Default: "max".
        dtype: Of the layers, which are computed in float64 and rounded once. Default: the dtype in which `model`
            computes most. What it computes in other dtypes is kept as it is.
        device_mesh: The ranks that share the network, in one dimension; each calls this with the same model and inputs.
            Layers of more than 16 MiB are sharded by rows, as CSR, and their outputs gathered; all else is on every
            rank. Default: None, the whole network in this process.

    Returns:
        A `torch.fx.GraphModule` that takes and returns what `model` does, for a batch of any size: `nn.Linear` and
        `SparseLinear` layers named after the modules whose work they do, and every nonlinear step as it was, on flat
        vectors, or on tensors of its own shape. Its parameters require gradients if any of the model's does. Its
        attribute `plan` is a table of its layers and steps.

    Raises:
        TypeError: If `model` is not a module, or an input is not a real dense tensor.
        FileNotFoundError: If `model` is the path of a file that is not there.
        ValueError: If the model depends on chance or mixes the samples of a batch, as in training mode; the message
            names the operator. If an output is not batch first, or an input, a weight or a result is not finite where
            it must be. If the model does not run on the example.
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
    ranks = 1
    ending: AbstractContextManager[Any] = nullcontext(lambda *items: None)
    if device_mesh is not None:
        from conv2affine.network.torch.ranks import InStep, number_of_ranks, shared_layer, together

        ranks, ending = number_of_ranks(device_mesh), together(device_mesh)
    with ending as check_same:
        held, inputs = hold(model, example_inputs)
        network, dtype = prepare(held, inputs, layout, merge, max_pool, dtype)
        plan = describe(network.graph, dtype, layout, ranks=ranks)
        check_same(held, inputs, plan)
        check_memory(plan)

        def make(name: str, matrix: Matrix, bias: Array | None) -> nn.Module:
            step(name)
            if device_mesh is not None and choose_layout(matrix, dtype, layout, ranks) == "sharded":
                return shared_layer(name, matrix, bias, dtype, device_mesh)
            return finite_layer(name, matrix, bias, dtype, layout)

        with progress(len(plan.layers)) as step:
            net = with_plan(export_torch(network, lambda each: dtype if each is network.dtype else each, make), plan)
    if device_mesh is None:
        verify(held, net, inputs, network, dtype)
    else:
        with together(device_mesh):
            verify(held, InStep(net, device_mesh), inputs, network, dtype)
    return in_mode_of(held, net)


@alone
def plan_network(
    model: Model,
    example_inputs: ExampleInputs,
    *,
    form: Literal["graph", "mlp"] = "graph",
    layout: NetworkLayout = "auto",
    merge: Merge = "auto",
    max_pool: Literal["max", "relu"] = "max",
    dtype: torch.dtype | None = None,
) -> NetworkPlan:
    """`plan` of a network: the table of what `to_linear_network` or `to_mlp` would make, with arguments as theirs.

    Example:
        >>> plan_network(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()), torch.rand(1, 64, 224, 224)).bytes
        14722400260
    """
    check_choices(form, merge, max_pool)
    model, inputs = hold(model, example_inputs, "input_size")
    if form == "mlp":
        _, _, layers, dtype, _ = prepare_chain(model, inputs, layout, dtype)
        plan = describe_layers(layers, dtype, layout)
    else:
        network, dtype = prepare(model, inputs, layout, merge, max_pool, dtype)
        plan = describe(network.graph, dtype, layout)
    return dataclasses.replace(plan, refusal=memory_refusal(plan))
