"""The public functions: from ONNX to ONNX, and from PyTorch to ONNX."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from onnx import ModelProto

from conv2affine.interop.vnnlib import Specification
from conv2affine.network.passes.merge import Merge
from conv2affine.network.proof.box import BoxBounds
from conv2affine.network.report import NetworkPlan
from conv2affine.network.torch.models.intake import ExampleInputs, Model, hold
from conv2affine.network.torch.models.surroundings import alone, on_cpu
from conv2affine.onnx.conversion import Conversion, size_refusal
from conv2affine.onnx.ends import given_box
from conv2affine.onnx.exporting.storage import check_target
from conv2affine.onnx.importing.aten import import_module, module_runner
from conv2affine.onnx.importing.importer import import_onnx
from conv2affine.onnx.importing.inference import check_rules
from conv2affine.onnx.importing.reader import read
from conv2affine.onnx.pipeline import MAX_BYTES, Form, MaxPool, Options, prepare, run
from conv2affine.onnx.running.runner import runner
from conv2affine.onnx.running.trials import with_outputs


@on_cpu
def convert(
    source: ModelProto | str | Path,
    path: str | Path | None = None,
    *,
    form: Form = "graph",
    merge: Merge = "auto",
    max_pool: MaxPool = "max",
    opset: int | None = None,
    dtype: torch.dtype | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    max_bytes: int = MAX_BYTES,
    flat: bool = False,
    box: BoxBounds | None = None,
    spec: Specification | str | Path | None = None,
    overwrite: bool = False,
) -> Conversion:
    r"""The same network, from ONNX to ONNX, as linear layers with nonlinear steps between them.

        y_piece = sum over sources s of Gemm(x_s, A_s) + b

    Args:
        source: A model, or its file.
        path: Where to write the result; None for nowhere.
        form: "graph" has Gemm, Add, ReLU and other steps on vectors, and keeps what is not affine as it is; "mlp" has
            Gemm and ReLU in turn, for networks of affine and piecewise-linear steps. It is larger, mostly where there
            is max pooling or a residual connection: `plan` shows the size first. Default: "graph".
        merge: In form "graph", as in `to_linear_network`; form "mlp" takes "auto" only. Default: "auto".
        max_pool: In form "graph", as in `to_linear_network`; form "mlp" has no max pooling. Default: "max".
        opset: Of the result. Default: 13, which most readers take; the source's if it keeps operators that changed.
        dtype: Of the layers, and of inputs and outputs that are float32 or float64; the layers are computed in float64.
            Default: float64 if an input or output of the model is, otherwise float32.
        shapes: Shapes of inputs, by name, where sizes after the first are not fixed.
        max_bytes: Limit for the bytes of the layers. Default: 1 GiB. Above 128 MiB, they have a file of their own,
            `path` with ".data" after it.
        flat: Whether inputs and outputs are vectors (batch, elements), so that an mlp is Gemm and Relu alone; an mlp of
            several inputs or outputs takes one vector, `inputs`, or returns one, `outputs`, with their elements in
            order. Default: False, which keeps their names and shapes.
        box: In form "mlp", (low, high) as in `to_mlp`: the result is the network for inputs in this box only, smaller,
            and `bounds` of the `Conversion` has the bounds of its layers. For several inputs, each is one number for
            all, a tuple in their order, a dict by name, or the vector of all elements. Default: None, for all inputs.
        spec: In form "mlp", a specification in VNN-LIB, or its file; see `read_spec`. The box is the smallest that
            holds all of its boxes. X_i and Y_j count the elements of all inputs and outputs in order, so it is valid
            for the result too. Default: None.
        overwrite: Whether a file at `path` may be replaced. Default: False.

    Returns:
        The `Conversion`: its `model` takes and returns what the source does, under the same names. It was compared with
        the source on random inputs before anything was written. Its `input_slices` and `output_slices` say where each
        input and output is in the vector of all.

    Raises:
        TypeError: If `source` is neither a model nor a path, `shapes` are not integers by name, or `box` is no pair of
            real numbers or arrays.
        FileExistsError: If there is a file at `path`, and `overwrite` is not set.
        FileNotFoundError: If `source` is not there.
        ValueError: If the model is broken, depends on chance, or lacks sizes; or if `path` is the source itself.
        NotImplementedError: If a node cannot be kept, or, in form "mlp", is neither affine nor piecewise linear; the
            message names it. If onnxruntime takes the model but not the result, or the result is not valid ONNX, as
            some operators have no float64.
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
        ['Constant', 'Reshape', 'Gemm', 'Relu', 'Gemm', 'Constant', 'Reshape']
    """
    options = Options(form, merge, max_pool, opset, dtype, max_bytes, flat, given_box(box, spec))
    target = _target(path, overwrite, source, spec)
    model = read(source, shapes)
    if form == "mlp":
        check_rules(model)
    return run(import_onnx(model), lambda names: runner(with_outputs(model.proto, names)), options, target, overwrite)


@alone
def export(
    model: Model,
    example_inputs: ExampleInputs,
    path: str | Path | None = None,
    *,
    form: Form = "graph",
    merge: Merge = "auto",
    max_pool: MaxPool = "max",
    opset: int | None = None,
    dtype: torch.dtype | None = None,
    max_bytes: int = MAX_BYTES,
    flat: bool = False,
    box: BoxBounds | None = None,
    spec: Specification | str | Path | None = None,
    overwrite: bool = False,
) -> Conversion:
    """A PyTorch module as an ONNX model of linear layers, with nonlinear steps between them.

    Args:
        model: As in `to_linear_network`.
        example_inputs: As in `to_linear_network`; integers as in `to_mlp`.
        path: As in `convert`.
        form: As in `convert`.
        merge: As in `convert`.
        max_pool: As in `convert`; "max" writes it as Gather and ReduceMax.
        opset: As in `convert`.
        dtype: As in `convert`.
        max_bytes: As in `convert`.
        flat: As in `convert`.
        box: As in `convert`.
        spec: As in `convert`.
        overwrite: As in `convert`.

    Returns:
        The `Conversion`; its `model` takes any number of samples.

    Raises:
        TypeError: If the model computes with an input in another dtype than float32 or float64.
        NotImplementedError: If a step has no ONNX operator, or as in `convert`; the message names its module.
        ValueError: As `to_linear_network`.
        MemoryError: As `convert`.
        RuntimeError: As `convert`.

    Example:
        >>> module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Tanh())
        >>> result = export(module, torch.rand(1, 1, 6, 6))
        >>> [node.op_type for node in result.model.graph.node]
        ['Constant', 'Reshape', 'Gemm', 'Tanh', 'Constant', 'Reshape']
    """
    options = Options(form, merge, max_pool, opset, dtype, max_bytes, flat, given_box(box, spec))
    target = _target(path, overwrite, model, spec)
    model, inputs = hold(model, example_inputs)
    network = import_module(model, inputs, opset)
    return run(network, lambda names: module_runner(model, network), options, target, overwrite)


@on_cpu
def plan(
    source: ModelProto | str | Path,
    *,
    form: Form = "graph",
    merge: Merge = "auto",
    max_pool: MaxPool = "max",
    dtype: torch.dtype | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    max_bytes: int = MAX_BYTES,
) -> NetworkPlan:
    """The table of what `convert` would make, before anything large is made.

    Args:
        source: As in `convert`.
        form: As in `convert`.
        merge: As in `convert`.
        max_pool: As in `convert`.
        dtype: As in `convert`.
        shapes: As in `convert`.
        max_bytes: As in `convert`.

    Returns:
        A `NetworkPlan`: a row for each layer and step, with its nodes, sizes, entries, and bytes per layout. Its
        `refusal` says why `convert` would refuse the layers for their size.

    Raises:
        TypeError: As `convert`.
        FileNotFoundError: As `convert`.
        ValueError: As `convert`.
        NotImplementedError: As `convert`.

    Example:
        >>> from onnx import parser
        >>> model = parser.parse_model('''
        ...     <ir_version: 8, opset_import: ["" : 13]>
        ...     example (float[N, 1, 2, 2] x) => (float[N, 1, 2, 2] y)
        ...     <float[1, 1, 1, 1] w = {3.0}> { z = Conv(x, w)  y = Relu(z) }
        ... ''')
        >>> print(plan(model))
        from   is      matrix  entries  dense  sparse  layout
        z      copied   4 x 4        4   64 B    52 B  dense
        y      relu         4
        total                        4   64 B    52 B  64 B
    """
    options = Options(form, merge, max_pool, None, dtype, max_bytes)
    plan = prepare(import_onnx(read(source, shapes)), options).plan
    return dataclasses.replace(plan, refusal=size_refusal(plan, max_bytes))


def _target(path: str | Path | None, overwrite: bool, *sources: object) -> Path | None:
    """The file to write, checked."""
    if path is None:
        return None
    if not isinstance(path, str | os.PathLike):
        name = type(path).__name__
        raise TypeError(f"path must be the path of a file, got {name}; it is the last argument by position")
    check_target(Path(path), overwrite, *sources)
    return Path(path)
