"""From an imported network to a model that was compared with the original: passes, limits, export, check, file."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import ModelProto, defs, external_data_helper, helper
from onnx.shape_inference import InferenceError

from conv2affine.interop.vnnlib import Specification
from conv2affine.network.graph import Kept, Step
from conv2affine.network.passes.chain import Layer
from conv2affine.network.passes.merge import Merge
from conv2affine.network.passes.simplify import simplify
from conv2affine.network.prepare import check_choices, to_layers, to_pieces
from conv2affine.network.progress import progress
from conv2affine.network.proof.box import Box, BoxBounds
from conv2affine.network.proof.forward import Interval
from conv2affine.network.report import NetworkPlan, describe, describe_layers
from conv2affine.onnx.conversion import Conversion, size_refusal
from conv2affine.onnx.ends import apart, begin_at_casts, box_of, check_floats, joined, slices_by_name
from conv2affine.onnx.exporting.exporter import Exporter, gathers, with_sources
from conv2affine.onnx.exporting.storage import data_of, named, publish, save
from conv2affine.onnx.importing.upgrade import MIN_OPSET
from conv2affine.onnx.model import BOX_KEY, DTYPES, FLOATS, OnnxNetwork, TensorInfo, one_line
from conv2affine.onnx.running.noise import with_noise
from conv2affine.onnx.running.runner import Run, compare, runner, sample
from conv2affine.onnx.running.trials import batch_refusal, layer_runner

Form = Literal["graph", "mlp"]
MaxPool = Literal["max", "relu"]
MAX_BYTES = 2**30
BATCHES = (1, 3)
# Unmaintained readers support opsets up to this; every operator that we write is older.
OPSET = 13
ADVICE = "choose another dtype or opset"


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
    box: BoxBounds | Specification | None = None

    def __post_init__(self) -> None:
        check_choices(self.form, self.merge, self.max_pool)
        if self.dtype not in (None, torch.float32, torch.float64):
            raise ValueError(
                f"dtype ({self.dtype!r}) must be torch.float32 or torch.float64, in which a result can be compared "
                "with its source; halve the result afterwards, with onnxconverter_common.float16"
            )
        opsets = range(MIN_OPSET, defs.onnx_opset_version() + 1)
        if self.opset is not None and self.opset not in opsets:
            raise ValueError(f"opset ({self.opset!r}) must be {opsets[0]} to {opsets[-1]}")
        if not self.max_bytes >= 0:
            raise ValueError(f"max_bytes ({self.max_bytes}) must be >= 0")
        if self.box is not None and self.form != "mlp":
            raise ValueError(
                f"box and spec must come with form 'mlp', got form {self.form!r}: only a chain is made for a box"
            )


@dataclass(frozen=True)
class Prepared:
    """A network after all passes: its graph, or its layers in form "mlp"; and as it was before them."""

    options: Options
    source: OnnxNetwork
    network: OnnxNetwork
    layers: Sequence[Layer] | None
    plan: NetworkPlan
    dtype: torch.dtype
    box: Box | None = None


@np.errstate(all="ignore")
def prepare(network: OnnxNetwork, options: Options) -> Prepared:
    """Run the passes, and make the plan."""
    source, dtype = network, options.dtype or network.dtype
    if options.form == "mlp":
        network = begin_at_casts(dataclasses.replace(network, graph=simplify(network.graph)))
        check_floats(network)
        values = zip(network.inputs, network.graph.inputs, strict=True)
        shapes = {tensor.name: value.shape for tensor, value in values}
        box = box_of(options.box, shapes, sum(value.size for value in network.graph.outputs))
        dtypes = [DTYPES[tensor.elem_type] for tensor in network.inputs if tensor.elem_type in DTYPES]
        limits = None if box is None else box.rounded(dtype, *dtypes)
        layers = to_layers(simplify(joined(network).graph), dtype, limits)
        plan = dataclasses.replace(describe_layers(layers, dtype, "dense"), box=str(box or ""))
        return Prepared(options, source, network, layers, plan, dtype, box)
    graph = with_sources(to_pieces(network.graph, options.merge, options.max_pool, dtype))
    plan = describe(graph, dtype, "dense", gather=gathers(graph))
    return Prepared(options, source, dataclasses.replace(network, graph=graph), None, plan, dtype)


@np.errstate(all="ignore")
def run(
    network: OnnxNetwork,
    run_with: Callable[[Sequence[str]], Run],
    options: Options,
    path: Path | None,
    overwrite: bool,
) -> Conversion:
    """Convert a network; `run_with` makes the run that the result is compared with, as in `batch_refusal`."""
    prepared = prepare(network, options)
    nodes = prepared.network.graph.nodes if prepared.layers is None else ()
    steps = [node for node in nodes if isinstance(node, Step | Kept) and node.call is not None]
    opset = choose_opset(steps, options.opset)
    if refusal := size_refusal(prepared.plan, options.max_bytes):
        raise MemoryError(f"{refusal}\n{prepared.plan}")
    static = batch_refusal(network, steps, run_with)
    folder = None if path is None else path.parent
    with named(path), tempfile.TemporaryDirectory(prefix=".conv2affine-", dir=folder) as temporary:
        file = Path(temporary) / (path.name if path else "model.onnx")
        model, difference, bounds = _write(prepared, opset, not static, run_with(()), file)
        is_large = any(map(external_data_helper.uses_external_data, model.graph.initializer))
        load = partial(onnx.load_model, path) if path and is_large else lambda: model
        if path is not None:
            publish(file, path, overwrite)
        elif is_large:
            external_data_helper.load_external_data_for_model(model, temporary)
    kept = {name: step.call.reason for step in steps for name in step.origin if step.call.reason}
    ends = slices_by_name(network.inputs, network.graph.inputs), slices_by_name(network.outputs, network.graph.outputs)
    return Conversion(load, prepared.plan, kept, difference, not static, static, *ends, bounds)


def choose_opset(steps: Sequence[Step | Kept], wanted: int | None) -> int:
    """The opset of the result: one in which all steps that are kept mean what they meant."""
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


def _write(
    prepared: Prepared, opset: int, is_batched: bool, original: Run, file: Path
) -> tuple[ModelProto, float, dict[str, Interval]]:
    """Write the model to a file, and compare it with the original."""
    network, layers, flat = prepared.network, prepared.layers, prepared.options.flat
    result = joined(network) if layers is not None and flat else network
    with progress(len(prepared.plan.layers)) as each, data_of(file, prepared.plan.bytes) as data:
        exporter = Exporter(result, prepared.dtype, opset, is_batched, flat, each, data)
        model = exporter.graph() if layers is None else exporter.mlp(layers)
    if prepared.box is not None:
        model.metadata_props.add(key=BOX_KEY, value=prepared.box.json())
    save(model, file)
    what = f"the result in {prepared.dtype} and opset {opset}"
    _check_valid(file, what)
    got = runner(file) if data is None else layer_runner(model, file)

    def noisy(size: float, run: int) -> Run:
        moved = with_noise(model, size, run, walls=True)
        return runner(moved) if data is None else layer_runner(moved, file)

    got.noisy = noisy
    separate = got if result is network else apart(got, network)
    eps = max(network.eps, torch.finfo(prepared.dtype).eps)
    floats = {tensor.name: exporter.writer.dtype for tensor in network.inputs if tensor.is_floating}
    differences = [
        compare(original, separate, given, floats, eps, batch if flat else None)
        for batch, given in _samples(prepared.source.inputs, is_batched, prepared.box)
    ]
    if got.refusal and not original.refusal:
        raise NotImplementedError(f"onnxruntime must run {what}, and does not: {got.refusal}; {ADVICE}")
    bounds = {name: interval for name, interval in exporter.bounds.items() if interval is not None}
    return model, max(differences), bounds


def _check_valid(file: Path, what: str) -> None:
    """Refuse a result that is not valid ONNX: an operator may have no float64."""
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, InferenceError) as error:
        rule = f"{what} must be valid ONNX, and is not: {one_line(error)}"
        if "unsupported type" in rule:
            raise NotImplementedError(f"{rule}; {ADVICE}") from error
        raise RuntimeError(f"{rule}; please report this") from error


def _samples(
    tensors: Sequence[TensorInfo], is_batched: bool, box: Box | None
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Inputs on which a result is compared, in the box if it is for one, and how many samples they are."""
    if box is None:
        for batch in BATCHES if is_batched else BATCHES[:1]:
            yield batch, sample(tensors, batch, is_batched)
        return
    kinds = [helper.tensor_dtype_to_np_dtype(tensor.elem_type) for tensor in tensors]
    wide = [np.float64 if x.elem_type in FLOATS else kind for x, kind in zip(tensors, kinds, strict=True)]
    points = box.points([torch.from_numpy(np.empty(0, kind)).dtype for kind in wide])
    arrays = [x.numpy().astype(kind) for x, kind in zip(points, kinds, strict=True)]
    batches: Any = [[x.reshape(-1, *x.shape[2:]) for x in arrays]] if is_batched else zip(*arrays, strict=True)
    for batch in batches:
        yield len(batch[0]), {tensor.name: x for tensor, x in zip(tensors, batch, strict=True)}
