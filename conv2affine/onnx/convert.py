"""The public functions: from ONNX to ONNX, and from PyTorch to ONNX."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from onnx import ModelProto, defs
from torch import nn

from conv2affine.network.chain import Layer
from conv2affine.network.convert import check_memory, to_layers
from conv2affine.network.graph import Step
from conv2affine.network.merge import MERGE, Merge
from conv2affine.network.merge import merge as merge_pieces
from conv2affine.network.progress import progress
from conv2affine.network.report import NetworkPlan, describe, describe_layers
from conv2affine.network.simplify import simplify
from conv2affine.network.to_relu import to_relu
from conv2affine.onnx.aten import import_module, module_runner
from conv2affine.onnx.exporter import Exporter
from conv2affine.onnx.importer import FLOATS, OnnxNetwork, import_onnx
from conv2affine.onnx.reader import read
from conv2affine.onnx.runner import Run, RunError, compare, runner, sample
from conv2affine.onnx.storage import check_target, publish, save
from conv2affine.plan import readable_bytes

__all__ = ["Conversion", "convert", "export", "plan"]

Form = Literal["graph", "mlp"]
FORMS = ("graph", "mlp")
# Readers of ONNX that are no longer worked on end here; all of ours is older.
OPSET = 13
MAX_BYTES = 2**30
MIN_OPSET = 8  # the first in which Max broadcasts
BATCHES = (1, 3)


@dataclass(frozen=True)
class Conversion:
    """What became of a network.

    Args:
        model: The new model.
        plan: Its layers and steps.
        kept: For each node that stays as it is, why.
        difference: The largest found between both models, relative to the largest element of the output.
        is_batched: Whether it takes any number of samples.
    """

    model: ModelProto
    plan: NetworkPlan
    kept: Mapping[str, str]
    difference: float
    is_batched: bool


def convert(
    source: ModelProto | str | Path,
    path: str | Path | None = None,
    *,
    form: Form = "graph",
    merge: Merge = "auto",
    max_pool: Literal["max", "relu"] = "max",
    opset: int | None = None,
    dtype: torch.dtype | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    max_bytes: int = MAX_BYTES,
    overwrite: bool = False,
) -> Conversion:
    r"""The same network, from ONNX to ONNX, as linear layers with nonlinear steps between them.

        y_piece = sum over sources s of Gemm(x_s, A_s) + b

    Args:
        source: A model, or its file.
        path: Where to write the result; None for nowhere.
        form: "graph" has Gemm, Add, ReLU and other steps on vectors, and keeps what is not affine as it is; "mlp" has
            Gemm and ReLU by turns, for networks of affine and piecewise-linear steps. Default: "graph".
        merge: In form "graph", as in `to_linear_network`. Default: "auto".
        max_pool: In form "graph", as in `to_linear_network`. Default: "max".
        opset: Of the result. Default: 13, which most readers take; that of the source if it keeps steps that changed.
        dtype: Of the layers, float32 or float64; they are computed in float64. Default: as the model.
        shapes: Shapes of inputs, by name, where sizes besides the first are not fixed.
        max_bytes: The layers may have. Default: 1 GiB.
        overwrite: Whether a file at `path` may be replaced. Default: False.

    Returns:
        The `Conversion`: its `model` takes and gives what the source does, under the same names. It was compared with
        the source on random inputs, and that before anything was written.

    Raises:
        FileExistsError: If there is a file at `path`, and `overwrite` is not set.
        FileNotFoundError: If `source` is not there.
        ValueError: If the model is broken, depends on chance, or lacks sizes.
        NotImplementedError: If a node cannot be kept, or, in form "mlp", is neither affine nor piecewise linear; the
            message names it.
        MemoryError: If the layers need more than `max_bytes`, or than is left; the message has the table.
        RuntimeError: If the result is not what the source computes.

    Example:
        >>> from onnx import parser
        >>> model = parser.parse_model('''
        ...     <ir_version: 8, opset_import: ["" : 13]>
        ...     example (float[N, 1, 2, 2] x) => (float[N, 1, 2, 2] y)
        ...     <float[1, 1, 1, 1] w = {3.0}> { z = Conv(x, w)  y = Relu(z) }
        ... ''')
        >>> result = convert(model, form="mlp")
        >>> [node.op_type for node in result.model.graph.node]
        ['Flatten', 'Gemm', 'Relu', 'Gemm', 'Reshape']
    """
    options = Options(form, merge, max_pool, opset, dtype, max_bytes)
    target = None if path is None else Path(path)
    if target is not None:
        check_target(target, overwrite)
    model = read(source, shapes)
    return _convert(import_onnx(model), lambda: runner(model.proto), options, target)


def export(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path | None = None,
    *,
    form: Form = "graph",
    merge: Merge = "auto",
    max_pool: Literal["max", "relu"] = "max",
    opset: int | None = None,
    dtype: torch.dtype | None = None,
    max_bytes: int = MAX_BYTES,
    overwrite: bool = False,
) -> Conversion:
    """A PyTorch module as an ONNX model of linear layers, with nonlinear steps between them.

    Args:
        model: As in `to_linear_network`.
        example_inputs: A tensor or a tuple of tensors, batch first.
        path: As in `convert`.
        form: As in `convert`.
        merge: As in `convert`.
        max_pool: As in `convert`; "max" writes it as Gather and ReduceMax.
        opset: As in `convert`.
        dtype: As in `convert`.
        max_bytes: As in `convert`.
        overwrite: As in `convert`.

    Returns:
        The `Conversion`; its `model` takes any number of samples.

    Raises:
        TypeError: If an input is no tensor of float32 or float64.
        NotImplementedError: If a step has no ONNX operator, or as in `convert`; the message names its module.
        ValueError: As `to_linear_network`.
        MemoryError: As `convert`.
        RuntimeError: As `convert`.

    Example:
        >>> module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Tanh())
        >>> result = export(module, torch.rand(1, 1, 6, 6))
        >>> [node.op_type for node in result.model.graph.node]
        ['Flatten', 'Gemm', 'Tanh', 'Reshape']
    """
    options = Options(form, merge, max_pool, opset, dtype, max_bytes)
    target = None if path is None else Path(path)
    if target is not None:
        check_target(target, overwrite)
    network = import_module(model, example_inputs)
    return _convert(network, lambda: module_runner(model, network), options, target)


def plan(
    source: ModelProto | str | Path,
    *,
    form: Form = "graph",
    merge: Merge = "auto",
    max_pool: Literal["max", "relu"] = "max",
    dtype: torch.dtype | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> NetworkPlan:
    """The table of what `convert` would make, before anything large is made.

    Args:
        source: As in `convert`.
        form: As in `convert`.
        merge: As in `convert`.
        max_pool: As in `convert`.
        dtype: As in `convert`.
        shapes: As in `convert`.

    Returns:
        A `NetworkPlan`: a row for each layer and step, with its nodes, sizes, entries, and bytes per layout.

    Raises:
        FileNotFoundError: As `convert`.
        ValueError: As `convert`.
        NotImplementedError: As `convert`.
    """
    return _prepare(import_onnx(read(source, shapes)), Options(form, merge, max_pool, None, dtype, 0)).plan


@dataclass(frozen=True)
class Options:
    """What a user asks for; see `convert`."""

    form: Form
    merge: Merge
    max_pool: Literal["max", "relu"]
    opset: int | None
    dtype: torch.dtype | None
    max_bytes: int

    def __post_init__(self) -> None:
        for name, allowed in (("form", FORMS), ("merge", MERGE), ("max_pool", ("max", "relu"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} ({getattr(self, name)!r}) must be one of {allowed}")
        if self.dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"dtype ({self.dtype}) must be torch.float32 or torch.float64")
        if self.opset is not None and not MIN_OPSET <= self.opset <= defs.onnx_opset_version():
            raise ValueError(f"opset ({self.opset}) must be {MIN_OPSET} to {defs.onnx_opset_version()}")


@dataclass(frozen=True)
class _Prepared:
    """A network after all passes: its graph, or its layers in form "mlp"."""

    network: OnnxNetwork
    layers: Sequence[Layer] | None
    plan: NetworkPlan
    dtype: torch.dtype


def _prepare(network: OnnxNetwork, options: Options) -> _Prepared:
    dtype = options.dtype or (torch.float64 if network.is_double else torch.float32)
    graph = simplify(network.graph)
    if options.form == "mlp":
        layers = to_layers(graph)
        return _Prepared(network, layers, describe_layers(layers, dtype, "dense"), dtype)
    if options.max_pool == "relu":
        graph = simplify(to_relu(graph, ("window_max",)))
    graph = simplify(merge_pieces(graph, options.merge))
    return _Prepared(dataclasses.replace(network, graph=graph), None, describe(graph, dtype, "dense"), dtype)


def _convert(network: OnnxNetwork, original: Callable[[], Run], options: Options, path: Path | None) -> Conversion:
    prepared = _prepare(network, options)
    steps = [node for node in prepared.network.graph.nodes if isinstance(node, Step) and node.operator is not None]
    opset = _choose_opset([] if prepared.layers else steps, options.opset)
    if prepared.plan.bytes > options.max_bytes:
        largest = max(prepared.plan.layers, key=lambda row: row.rows * row.cols)
        raise MemoryError(
            f"the layers need {readable_bytes(prepared.plan.bytes)}, more than max_bytes "
            f"({readable_bytes(options.max_bytes)}); the largest is that of {largest.name} ({largest.rows} x "
            f"{largest.cols}); choose a smaller input, or raise max_bytes\n{prepared.plan}"
        )
    check_memory(prepared.plan)
    run = original()
    is_batched = network.is_batched and _takes_batches(network, run)
    folder = None if path is None else path.parent
    with tempfile.TemporaryDirectory(prefix=".conv2affine-", dir=folder) as temporary:
        file = Path(temporary) / (path.name if path else "model.onnx")
        try:
            model, difference = _write(prepared, opset, is_batched, run, file)
        except RuntimeError:
            if not is_batched:
                raise
            # Some networks mix the samples of a batch, or hold numbers of their own for each: one at a time, then.
            is_batched = False
            model, difference = _write(prepared, opset, is_batched, run, file)
        if path is not None:
            publish(file, path)
    kept = {name: step.operator.reason for step in steps for name in step.origin if step.operator.reason}
    return Conversion(model, prepared.plan, kept, difference, is_batched)


def _write(prepared: _Prepared, opset: int, is_batched: bool, original: Run, file: Path) -> tuple[ModelProto, float]:
    """Write the model to a file, and compare it with the original."""
    network, layers = prepared.network, prepared.layers
    with progress(len(prepared.plan.layers)) as each:
        exporter = Exporter(network, prepared.dtype, opset, is_batched, each)
        model = exporter.graph() if layers is None else exporter.mlp(layers)
    save(model, file)
    onnx.checker.check_model(str(file))
    got = runner(file)
    floats = {tensor.name: exporter.writer.dtype for tensor in network.inputs if tensor.elem_type in FLOATS}
    differences = [
        compare(original, got, sample(network.inputs, batch, is_batched), floats)
        for batch in (BATCHES if is_batched else BATCHES[:1])
    ]
    return model, max(differences)


def _takes_batches(network: OnnxNetwork, original: Run) -> bool:
    """Whether the original runs on more than one sample."""
    try:
        original(sample(network.inputs, BATCHES[-1], True))
    except RunError:
        return False
    return True


def _choose_opset(steps: Sequence[Step], wanted: int | None) -> int:
    """The opset of the result: one by which all steps that are kept mean what they meant."""
    sources = sorted({step.operator.opset for step in steps}, reverse=True)
    for opset in [OPSET, *sources, *range(OPSET - 1, MIN_OPSET - 1, -1)] if wanted is None else [wanted]:
        changed = [step for step in steps if _since(step, opset) != _since(step, step.operator.opset)]
        if not changed:
            return opset
    step = changed[0]
    raise ValueError(
        f"opset ({wanted or OPSET}) must not change the meaning of node {', '.join(step.origin)} "
        f"({step.operator.op_type}), which is kept; use opset {step.operator.opset}"
    )


def _since(step: Step, opset: int) -> int:
    """The opset that last changed an operator."""
    try:
        return int(defs.get_schema(step.operator.op_type, opset, "").since_version)
    except defs.SchemaError:
        return 0
