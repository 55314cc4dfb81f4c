"""From an imported network to a model that was compared with the original: passes, limits, export, check, file."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, defs, external_data_helper
from onnx.shape_inference import InferenceError

from conv2affine.convolution.sizes import readable_bytes
from conv2affine.display import html_table
from conv2affine.network.graph import Kept, Node, Step, Value
from conv2affine.network.passes.chain import Layer
from conv2affine.network.passes.ends import join_ends, slices
from conv2affine.network.passes.merge import MERGE, Merge
from conv2affine.network.passes.merge import merge as merge_pieces
from conv2affine.network.passes.simplify import replace_inputs, simplify
from conv2affine.network.passes.to_relu import to_relu
from conv2affine.network.prepare import memory_refusal, to_layers
from conv2affine.network.progress import progress
from conv2affine.network.report import NetworkPlan, describe, describe_layers
from conv2affine.onnx.exporting.exporter import Exporter, gathers
from conv2affine.onnx.exporting.storage import data_of, publish, save
from conv2affine.onnx.model import FLOATS, OnnxNetwork, TensorInfo
from conv2affine.onnx.running.runner import Run, compare, runner, sample
from conv2affine.onnx.running.trials import first_mixing, layer_runner

__all__ = ["MAX_BYTES", "Conversion", "Form", "MaxPool", "Options", "prepare", "run", "size_refusal"]

Form = Literal["graph", "mlp"]
MaxPool = Literal["max", "relu"]
FORMS = ("graph", "mlp")
# Readers of ONNX that are no longer worked on end here; all of ours is older.
OPSET = 13
MAX_BYTES = 2**30
MIN_OPSET = 8  # the first in which Max broadcasts
BATCHES = (1, 3)


@dataclass(frozen=True, repr=False)
class Conversion:
    """What became of a network; in a notebook, the table of its layers and why steps were kept.

    Args:
        load: Gives the new model.
        plan: Its layers and steps.
        kept: For each node that stays as it is, why.
        difference: The largest found between both models, relative to the largest element of the output.
        is_batched: Whether it takes any number of samples.
        static: Why it does not; "" if it does.
        input_slices: Where the elements of each input are in the vector of all, by name.
        output_slices: Likewise.
    """

    load: Callable[[], ModelProto] = field(repr=False)
    plan: NetworkPlan
    kept: Mapping[str, str]
    difference: float
    is_batched: bool
    static: str = ""
    input_slices: Mapping[str, slice] = field(default_factory=dict)
    output_slices: Mapping[str, slice] = field(default_factory=dict)

    @cached_property
    def model(self) -> ModelProto:
        """The new model; one that has its data in a file of its own is loaded when it is asked for."""
        return self.load()

    def __repr__(self) -> str:
        return f"Conversion({self.plan!r}, kept {len(self.kept)}, {self._facts()})"

    def _repr_html_(self) -> str:
        kept = html_table(("kept", "because"), self.kept.items(), left=(0, 1)) if self.kept else ""
        return f"{self.plan._repr_html_()}{kept}<p>{escape(self._facts())}</p>"

    def _facts(self) -> str:
        samples = "any number of samples" if self.is_batched else "one sample"
        return f"{samples}, difference {self.difference:.1e}"


@dataclass(frozen=True)
class Options:
    """What a user asks for; see `convert`."""

    form: Form
    merge: Merge
    max_pool: MaxPool
    opset: int | None
    dtype: torch.dtype | None
    max_bytes: int
    flat: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("form", FORMS), ("merge", MERGE), ("max_pool", ("max", "relu"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} ({getattr(self, name)!r}) must be one of {allowed}")
        if self.dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"dtype ({self.dtype}) must be torch.float32 or torch.float64")
        opsets = range(MIN_OPSET, defs.onnx_opset_version() + 1)
        if self.opset is not None and self.opset not in opsets:
            raise ValueError(f"opset ({self.opset!r}) must be {opsets[0]} to {opsets[-1]}")
        if not self.max_bytes >= 0:
            raise ValueError(f"max_bytes ({self.max_bytes}) must be >= 0")


@dataclass(frozen=True)
class Prepared:
    """A network after all passes: its graph, or its layers in form "mlp"."""

    network: OnnxNetwork
    layers: Sequence[Layer] | None
    plan: NetworkPlan
    dtype: torch.dtype


@np.errstate(all="ignore")
def prepare(network: OnnxNetwork, options: Options) -> Prepared:
    """Run the passes, and make the plan."""
    dtype = options.dtype or network.dtype
    graph = simplify(network.graph)
    if options.form == "mlp":
        network = _without_casts(dataclasses.replace(network, graph=graph))
        layers = to_layers(simplify(_join(network).graph), dtype)
        return Prepared(network, layers, describe_layers(layers, dtype, "dense"), dtype)
    if options.max_pool == "relu":
        graph = simplify(to_relu(graph, dtype, ("window_max",)))
    graph = simplify(merge_pieces(graph, options.merge))
    plan = describe(graph, dtype, "dense", gather=gathers(graph))
    return Prepared(dataclasses.replace(network, graph=graph), None, plan, dtype)


@np.errstate(all="ignore")
def run(
    network: OnnxNetwork,
    original: Callable[[Sequence[str]], Run],
    options: Options,
    path: Path | None,
    overwrite: bool,
) -> Conversion:
    """Convert a network; `original` gives what the result is compared with, as in `first_mixing`."""
    prepared = prepare(network, options)
    steps = [node for node in prepared.network.graph.nodes if isinstance(node, Step | Kept) and node.call is not None]
    steps = [] if prepared.layers else steps
    opset = _choose_opset(steps, options.opset)
    if refusal := size_refusal(prepared.plan, options.max_bytes):
        raise MemoryError(f"{refusal}\n{prepared.plan}")
    static = first_mixing(network, steps, original)
    folder = None if path is None else path.parent
    with tempfile.TemporaryDirectory(prefix=".conv2affine-", dir=folder) as temporary:
        file = Path(temporary) / (path.name if path else "model.onnx")
        model, difference = _write(prepared, network.inputs, opset, not static, options.flat, original(()), file)
        is_large = any(map(external_data_helper.uses_external_data, model.graph.initializer))
        load = partial(onnx.load_model, path) if path and is_large else lambda: model
        if path is not None:
            publish(file, path, overwrite)
        elif is_large:
            external_data_helper.load_external_data_for_model(model, temporary)
    kept = {name: step.call.reason for step in steps for name in step.origin if step.call.reason}
    ends = _slices(network.inputs, network.graph.inputs), _slices(network.outputs, network.graph.outputs)
    return Conversion(load, prepared.plan, kept, difference, not static, static, *ends)


def size_refusal(plan: NetworkPlan, max_bytes: int) -> str:
    """Why the layers of a plan are too large; "" if they are not."""
    if plan.bytes <= max_bytes:
        return memory_refusal(plan)
    sparse = sum(dict(row.bytes)["sparse"] for row in plan.layers)
    largest = max(plan.layers, key=lambda row: dict(row.bytes)[row.layout])
    return (
        f"the layers need {readable_bytes(plan.bytes)}, more than max_bytes ({readable_bytes(max_bytes)}); the largest "
        f"is that of {largest.name} ({largest.rows} x {largest.cols}); choose a smaller input, or raise max_bytes "
        f"(--max-gib). ONNX has no sparse layers: as CSR they need {readable_bytes(sparse)}, and to_linear_network has "
        "that"
    )


def _without_casts(network: OnnxNetwork) -> OnnxNetwork:
    """A network that begins with what it casts its integers to, as pixels: a chain takes floats."""
    graph, users = network.graph, network.graph.users
    names: dict[Value, Value] = {}
    inputs = []
    for value, tensor in zip(graph.inputs, network.inputs, strict=True):
        if tensor.elem_type not in FLOATS and value not in graph.outputs and all(map(_is_cast, users[value])):
            names.update({cast.outputs[0]: value for cast in users[value]})
            tensor = dataclasses.replace(tensor, elem_type=TensorProto.FLOAT)
        inputs.append(tensor)
    nodes = [replace_inputs(node, names) for node in graph.nodes if node.outputs[0] not in names]
    graph = dataclasses.replace(graph, nodes=nodes, outputs=[names.get(value, value) for value in graph.outputs])
    return dataclasses.replace(network, graph=graph, inputs=tuple(inputs))


def _is_cast(node: Node) -> bool:
    """Whether a node casts to floats."""
    if not isinstance(node, Kept) or node.kind != "Cast":
        return False
    return any(attribute.name == "to" and attribute.i in FLOATS for attribute in node.call.attributes)


def _write(
    prepared: Prepared,
    inputs: Sequence[TensorInfo],
    opset: int,
    is_batched: bool,
    flat: bool,
    original: Run,
    file: Path,
) -> tuple[ModelProto, float]:
    """Write the model to a file, and compare it with the original."""
    network, layers = prepared.network, prepared.layers
    result = _join(network) if layers is not None and flat else network
    with progress(len(prepared.plan.layers)) as each, data_of(file, prepared.plan.bytes) as data:
        exporter = Exporter(result, prepared.dtype, opset, is_batched, flat, each, data)
        model = exporter.graph() if layers is None else exporter.mlp(layers)
    save(model, file)
    wanted, other = f"the result in {prepared.dtype} and opset {opset}", "choose another dtype or opset"
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, InferenceError) as error:  # an operator that has no float64, say
        reason = " ".join(str(error).split())
        if "unsupported type" in reason:
            raise NotImplementedError(f"{wanted} must be valid ONNX, and is not: {reason}; {other}") from error
        raise RuntimeError(f"{wanted} must be valid ONNX, and is not: {reason}; please report this") from error
    got = runner(file) if data is None else layer_runner(file)
    separate = got if result is network else _apart(got, network)
    eps = max(network.eps, torch.finfo(prepared.dtype).eps)
    floats = {tensor.name: exporter.writer.dtype for tensor in network.inputs if tensor.is_floating}
    differences = [
        compare(original, separate, sample(inputs, batch, is_batched), floats, eps, batch if flat else None)
        for batch in (BATCHES if is_batched else BATCHES[:1])
    ]
    if got.refusal and not original.refusal:
        raise NotImplementedError(f"onnxruntime must run {wanted}, and does not: {got.refusal}; {other}")
    return model, max(differences)


def _join(network: OnnxNetwork) -> OnnxNetwork:
    """The network of one vector of all inputs, and of one of all outputs, where there are several."""
    graph = join_ends(network.graph)
    inputs, outputs = network.inputs, network.outputs
    if len(inputs) > 1:
        for tensor in inputs:
            if tensor.elem_type not in FLOATS:
                name = TensorProto.DataType.Name(tensor.elem_type).lower()
                raise NotImplementedError(
                    f"inputs of a chain must be of type float or double, and {tensor.name} is of {name}; form graph "
                    "takes it"
                )
        [value] = graph.inputs
        inputs = (
            dataclasses.replace(inputs[0], name=value.name, dims=(inputs[0].dims[0], value.size), shape=value.shape),
        )
    if len(outputs) > 1:
        outputs = (dataclasses.replace(outputs[0], name=graph.outputs[0].name),)
    return dataclasses.replace(network, graph=graph, inputs=inputs, outputs=outputs)


def _apart(got: Run, network: OnnxNetwork) -> Run:
    """What takes and gives a vector for each tensor of a network, by a result that takes and gives one for all."""
    starts = [part.start for part in slices(network.graph.outputs)]
    [joined] = _join(network).inputs

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        vector = np.concatenate([inputs[tensor.name] for tensor in network.inputs], axis=1)
        return np.split(got({joined.name: vector})[0], starts[1:], axis=1)

    return dataclasses.replace(got, function=run)


def _slices(tensors: Sequence[TensorInfo], values: Sequence[Value]) -> dict[str, slice]:
    return dict(zip((tensor.name for tensor in tensors), slices(values), strict=True))


def _choose_opset(steps: Sequence[Step | Kept], wanted: int | None) -> int:
    """The opset of the result: one by which all steps that are kept mean what they meant."""
    sources = sorted({step.call.opset for step in steps}, reverse=True)
    for opset in [OPSET, *sources, *range(OPSET - 1, MIN_OPSET - 1, -1)] if wanted is None else [wanted]:
        changed = [step for step in steps if _since(step, opset) != _since(step, step.call.opset)]
        if not changed:
            return opset
    step = changed[0]
    raise ValueError(
        f"opset ({wanted or OPSET}) must not change the meaning of node {', '.join(step.origin)} "
        f"({step.call.op_type}), which is kept; use opset {step.call.opset}"
    )


def _since(step: Step | Kept, opset: int) -> int:
    """The opset that last changed an operator."""
    try:
        return int(defs.get_schema(step.call.op_type, opset, "").since_version)
    except defs.SchemaError:
        return 0
