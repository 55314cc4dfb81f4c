"""The cases by which ONNX tests backends, one operator at a time: inputs, and the outputs that the standard wants."""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from conv2affine.onnx import convert
from conv2affine.onnx.importing.rules import RULES
from conv2affine.onnx.running.runner import runner

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
# Kept, and run by onnxruntime, which does not do what the standard wants.
DISPUTED = (
    "test_resize_downsample_scales_cubic_align_corners",
    "test_resize_downsample_scales_linear_align_corners",
)
# Of these the standard has no case that a rule takes.
NONE = ("AffineGrid", "CastLike", "GlobalLpPool", "LpPool", "Pow", "RotaryEmbedding", "STFT", "ThresholdedRelu", "TopK")
MAX_ELEMENTS = 2**11
# What is converted with nothing kept: operator, case and form, one a line, sorted. A rule without lines fails below.
CONVERTED = [line.split() for line in (Path(__file__).parent / "backend_cases.txt").read_text().splitlines()]


@pytest.fixture(scope="module")
def cases() -> dict[str, list[Any]]:
    """The cases of one node that have a floating input and floating outputs, by operator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = defaultdict(list)
        for case in collect_testcases(None):
            graph = case.model.graph
            inputs, outputs = (
                [info.type.tensor_type.elem_type in FLOATS for info in infos] for infos in (graph.input, graph.output)
            )
            usual = len(graph.node) == 1 and any(inputs) and all(outputs) and case.name not in DISPUTED
            if usual and max(array(x).size for x in case.data_sets[0][0]) <= MAX_ELEMENTS:
                found[graph.node[0].op_type].append(case)
    return found


def array(x: Any) -> Any:
    """The array that a case has, or its tensor."""
    return numpy_helper.to_array(x) if isinstance(x, TensorProto) else np.asarray(x)


def with_constants(case: Any) -> tuple[ModelProto, dict[str, Any]]:
    """The model of a case whose inputs are all constants but the first floating one, and that one."""
    model = ModelProto()
    model.CopyFrom(case.model)
    inputs = dict(zip([info.name for info in model.graph.input], case.data_sets[0][0], strict=True))
    first = next(info.name for info in model.graph.input if info.type.tensor_type.elem_type in FLOATS)
    for info in list(model.graph.input):
        if info.name != first:
            model.graph.initializer.append(numpy_helper.from_array(array(inputs[info.name]), info.name))
            model.graph.input.remove(info)
    return model, {first: array(inputs[first])}


# The standard has no cases of the others, or not of finite floating numbers.
@pytest.mark.diagonal
@pytest.mark.parametrize("form", ["graph", "mlp"])
@pytest.mark.parametrize("op_type", sorted(RULES.keys() - {"Cast", "Scatter", "Trilu", "Upsample"}))
def test_equals_what_the_standard_wants(op_type: str, form: Any, cases: dict[str, list[Any]]) -> None:
    converted = set()
    for case in cases[op_type]:
        model, inputs = with_constants(case)
        if not all(np.isfinite(x).all() for x in inputs.values()):
            continue  # 0 times infinity is not 0
        try:
            result = convert(model, form=form)
        except (MemoryError, NotImplementedError, ValueError):
            continue
        # A float32 input of a network that computes in float64 is one of float64 afterwards.
        double = result.model.graph.input[0].type.tensor_type.elem_type == TensorProto.DOUBLE
        feeds = {name: x.astype(np.float64 if double else np.float32) for name, x in inputs.items()}
        for got, wanted in zip(runner(result.model)(feeds), case.data_sets[0][1], strict=True):
            np.testing.assert_allclose(got, array(wanted), case.rtol, 1e-5, err_msg=case.name)
        if not result.kept:
            converted.add(case.name)
    listed = {name for kind, name, made in CONVERTED if (kind, made) == (op_type, form)}
    assert listed <= converted
    lines = "\n".join(f"{op_type} {name} {form}" for name in sorted(converted))
    assert listed or op_type in NONE, (
        f"onnx/importing/backend_cases.txt must have lines of {op_type}; of its cases these convert:\n{lines}"
    )
