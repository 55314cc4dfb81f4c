"""Operators on which onnxruntime, onnx.reference and shape inference disagree: onnxruntime decides."""

from __future__ import annotations

import itertools
import re
from itertools import product

import numpy as np
import pytest

from conv2affine.onnx import convert
from tests.conftest import long_but
from tests.onnx.models import difference, inputs, model, random

REFUSED = "the shape that onnx infers|the model must run on random inputs|must have elements, got"

NONE = random(0)


def slices():
    """From before the axis to behind it, with every sign of the step."""
    for numbers in product((-9, -5, -1, 0, 3, 8), (-9, -4, 0, 4, 9), (1, 2, -1, -2)):
        yield f"slice {numbers}", "y = Slice(x, s, e, a, t)", dict(zip("seta", (*numbers, 1), strict=True)), 5, 13


def pools():
    """With each way to pad, dilated and with rounded sizes."""
    pads = (
        'auto_pad = "SAME_UPPER"',
        'auto_pad = "SAME_LOWER"',
        'auto_pad = "VALID"',
        "pads = [1, 1]",
        "pads = [0, 1]",
    )
    operators = ("MaxPool", "AveragePool", "LpPool")
    for operator, pad, k, s, d, ceil in product(operators, pads, (1, 2, 3), (1, 2, 3), (1, 2), (0, 1)):
        text = f"kernel_shape = [{k}], strides = [{s}], dilations = [{d}], ceil_mode = {ceil}, {pad}"
        text += ", p = 1" * (operator == "LpPool")
        yield f"{operator}<{text}>", f"y = {operator}<{text}>(x)", {}, 6, 19


def resizes():
    """By scales that are no whole numbers."""
    modes = ("half_pixel", "pytorch_half_pixel", "asymmetric", "half_pixel_symmetric")
    kinds = ('"nearest"', '"linear"', '"cubic"', '"cubic", exclude_outside = 1')
    for kind, mode, scale in product(kinds, modes, (0.3, 0.6, 2, 2.3)):
        text = f'mode = {kind}, coordinate_transformation_mode = "{mode}"'
        yield f"{text} {scale}", f"y = Resize<{text}>(x, r, s)", {"s": np.float32([1, 1, scale])}, 5, 19


def some_pools():
    """Every seventh, so that each value of each option is among them."""
    return itertools.islice(pools(), 0, None, 7)


@pytest.mark.parametrize(
    "cases",
    long_but([slices, some_pools, resizes], [slices, some_pools, pools, resizes]),
    ids=lambda cases: cases.__name__,
)
def test_each_is_as_in_onnxruntime_or_refused_for_its_shape(cases):
    """What the rules know is converted, what they know otherwise is kept."""
    counts = {"converted": 0, "kept": 0, "refused": 0}
    for name, nodes, constants, size, opset in cases():
        arrays = {key: x if np.ndim(x) else np.array([x]) for key, x in constants.items()}
        shape = ("N", size) if cases is slices else ("N", 1, size)
        original = model(nodes, {"x": shape}, {"r": NONE, **arrays}, opset=opset)
        result, failure = None, ""
        try:
            result = convert(original)
        except (NotImplementedError, ValueError) as error:
            failure = str(error)
        if result is None:
            assert re.search(REFUSED, failure), (name, failure)
            counts["refused"] += 1
            continue
        assert difference(original, result.model, inputs(result.model, 3)) < 1e-5, name
        counts["kept" if result.kept else "converted"] += 1
    assert counts["converted"] >= MIN_CONVERTED[cases.__name__]


MIN_CONVERTED = {"slices": 46, "some_pools": 46, "pools": 335, "resizes": 62}


def test_a_node_is_kept_where_its_rule_is_not_what_runs():
    original = model(
        "y = Slice(x, s, e, a, t)", {"x": ("N", 5)}, dict(zip("seat", np.array([[-9], [-99], [1], [-1]]), strict=True))
    )
    result = convert(original)
    assert result.kept == {"y": "the runtime computes it differently"}


def test_a_shape_that_is_not_inferred_is_named():
    original = model("y = MaxPool<kernel_shape = [1], strides = [3], ceil_mode = 1>(x)", {"x": ("N", 1, 5)})
    with pytest.raises(NotImplementedError, match=r"MaxPool node y: .* infers, \(1, 1, 3\), and .* gives \(1, 1, 2\)"):
        convert(original)
