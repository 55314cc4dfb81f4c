"""What stands in for operators of onnx.reference: the same results, all elements at once."""

import itertools
import time

import numpy as np
import onnxruntime
import pytest

from conv2affine.onnx.reference import evaluator
from tests.onnx.models import model, random

SIDES = {"none": (0, 0), "start": (1, 0), "end": (0, 1), "both": (1, 1), "VALID": None, "SAME_UPPER": None}
POOLS = {
    "max": ("MaxPool", ""),
    "max-dilated": ("MaxPool", ", dilations = {twos}"),
    "average": ("AveragePool", ""),
    "average-with-padding": ("AveragePool", ", count_include_pad = 1"),
    "norms": ("LpPool", ", p = 3"),
    "max-ceil": ("MaxPool", ", ceil_mode = 1"),
    "average-ceil": ("AveragePool", ", ceil_mode = 1"),
    "norms-ceil": ("LpPool", ", ceil_mode = 1"),
}


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("pool", POOLS)
def test_pools(pool, axes):
    name, options = POOLS[pool]
    x = random(2, 2, 7, 6, 5)[(..., *[0] * (3 - axes))]
    for kernel, stride, sides in itertools.product((2, 3), (1, 2, 3), SIDES):
        pads = f'auto_pad = "{sides}"' if SIDES[sides] is None else f"pads = {np.repeat(SIDES[sides], axes).tolist()}"
        if "dilations" in options and sides not in ("none", "VALID"):
            continue
        if SIDES[sides] is None and ("ceil_mode" in options or stride > kernel):  # onnxruntime has none of these
            continue
        attributes = f"kernel_shape = {[kernel] * axes}, strides = {[stride] * axes}, {pads}{options}"
        proto = model(f"y = {name}<{attributes.format(twos=[2] * axes)}>(x)", {"x": x.shape}, opset=18)
        [expected] = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
        [result] = evaluator(proto).run(None, {"x": x})
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, atol=1e-6, err_msg=attributes)


TRANSPOSED = {
    "plain": "",
    "strides": "strides = {threes}",
    "cut": "strides = {twos}, pads = {sides}",
    "longer": "strides = {threes}, output_padding = {twos}, dilations = {twos}",
    "groups": "group = 2, strides = {twos}",
    "valid": 'auto_pad = "VALID", strides = {twos}',
    "same-upper": 'auto_pad = "SAME_UPPER", strides = {twos}',
}


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("case", TRANSPOSED)
def test_transposed_convolutions(case, axes):
    x, w = (random(*size[: 2 + axes], seed=seed) for seed, size in enumerate([(2, 4, 4, 3, 2), (4, 3, 3, 2, 2)]))
    attributes = TRANSPOSED[case].format(threes=[3] * axes, twos=[2] * axes, sides=[1] * axes + [0] * axes)
    groups = 2 if case == "groups" else 1
    nodes = f"y = ConvTranspose<{attributes}>(x, w, b)" if attributes else "y = ConvTranspose(x, w, b)"
    proto = model(nodes, {"x": x.shape}, {"w": w, "b": random(3 * groups)}, opset=18)
    [expected] = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    [result] = evaluator(proto).run(None, {"x": x})
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_samples_of_a_grid(mode, padding):
    x, grid = random(2, 3, 6, 5), random(2, 4, 7, 2, seed=1)
    nodes = f'y = GridSample<mode = "{mode}", padding_mode = "{padding}", align_corners = {{}}>(x, g)'
    for corners in (0, 1):
        proto = model(nodes.format(corners), {"x": x.shape}, {"g": grid}, opset=16)
        [expected] = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
        [result] = evaluator(proto).run(None, {"x": x})
        np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["MaxPool", "AveragePool", "LpPool"])
def test_pools_of_ordinary_size_take_no_seconds(name):
    """A conversion without onnxruntime runs a model some 20 times; one by one, these windows take 4 s each time."""
    proto = model(f"y = {name}<kernel_shape = [3, 3], strides = [2, 2]>(x)", {"x": (1, 64, 112, 112)})
    start = time.process_time()
    evaluator(proto).run(None, {"x": random(1, 64, 112, 112)})
    assert time.process_time() - start < 1
