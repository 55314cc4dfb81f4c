"""Whether the networks of two files are equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto, helper

from conv2affine.interop.vnnlib import Specification
from conv2affine.network.equality.compare import Comparison, compare
from conv2affine.network.equality.side import Side, naming
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.passes.ends import slices
from conv2affine.network.proof.box import BoxBounds
from conv2affine.network.torch.models.surroundings import on_cpu
from conv2affine.onnx.ends import box_of, given_box
from conv2affine.onnx.importing.importer import import_onnx
from conv2affine.onnx.importing.reader import read
from conv2affine.onnx.model import BOX_KEY, DTYPES
from conv2affine.onnx.running.runner import runner


@on_cpu
def check(
    a: ModelProto | str | Path,
    b: ModelProto | str | Path,
    *,
    spec: Specification | str | Path | None = None,
    box: BoxBounds | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Comparison:
    """Whether the networks of two files are equal, as `conv2affine.check` says it.

        |b(x) - a(x)| <= bound    for all x in the box

    x is one sample: what a file that mixes the samples of a batch makes of several is not looked at.

    Args:
        a: A model, or its file.
        b: Likewise. Their inputs are the same by name, or by their order if the names differ; and their outputs by
            their order.
        spec: As in `convert`: the box is the smallest that holds those of the specification. Default: None.
        box: As in `convert`: look at inputs in this box only, and bound the difference there. Default: None, for all.
        shapes: As in `convert`.

    Returns:
        The `Comparison`.

    Raises:
        TypeError: As `convert`.
        FileNotFoundError: As `convert`.
        ValueError: As `convert`; or if the inputs of a and b have other sizes.
        NotImplementedError: If a node cannot be kept, or an input is of integers.
        MemoryError: If the matrices of all pieces need more memory than is left.

    Example:
        >>> from onnx import parser
        >>> text = '''
        ...     <ir_version: 8, opset_import: ["" : 13]>
        ...     example (float[N, 1, 2, 2] x) => (float[N, 1, 2, 2] y)
        ...     <float[1, 1, 1, 1] w = {3.0}> { z = Conv(x, w)  y = Relu(z) }
        ... '''
        >>> result = check(parser.parse_model(text), parser.parse_model(text.replace("3.0", "3.001")))
        >>> result.verdict, result.origin
        ('different', (('z',), ('z',)))
    """
    given = given_box(box, spec)
    with naming("a"):
        first, sizes = file_side(a, shapes)
    with naming("b"):
        second, _ = file_side(b, shapes, order=list(sizes))
    within = box_of(given, sizes, first.graph.outputs[0].size)
    return compare((first, second), within, list(sizes.values()), np.zeros((1, first.graph.inputs[0].size)))


def file_side(
    source: ModelProto | str | Path,
    shapes: Mapping[str, Sequence[int]] | None,
    argument: str = "shapes",
    order: Sequence[str] = (),
) -> tuple[Side, dict[str, tuple[int, ...]]]:
    """A file as a side of a comparison, and the shapes of its inputs, in this order if these are their names."""
    model = read(source, shapes, argument)
    network, run = import_onnx(model), runner(model.proto)
    pairs = list(zip(network.inputs, network.graph.inputs, strict=True))
    if sorted(order) == sorted(tensor.name for tensor, _ in pairs):
        pairs.sort(key=lambda pair: order.index(pair[0].name))
    for tensor, _ in pairs:
        if tensor.elem_type not in DTYPES:
            raise NotImplementedError(
                f"inputs of networks that are compared must be of a floating-point type, and {tensor.name} is not; "
                "leave out the Cast that reads it, in both"
            )
    values = [value for _, value in pairs]
    parts = slices(values)

    def own(point: Array) -> Array:
        given = {
            tensor.name: np.asarray(point[part], helper.tensor_dtype_to_np_dtype(tensor.elem_type)).reshape(value.shape)
            for (tensor, value), part in zip(pairs, parts, strict=True)
        }
        return np.concatenate([np.asarray(output, np.float64).ravel() for output in run(given)])

    graph = dataclasses.replace(network.graph, inputs=values)
    dtypes = [DTYPES[tensor.elem_type] for tensor, _ in pairs]
    box = next((entry.value for entry in model.proto.metadata_props if entry.key == BOX_KEY), "")
    side = Side(graph, network.dtype, network.eps, dtypes, own, box)
    return side, {tensor.name: value.shape for tensor, value in pairs}
