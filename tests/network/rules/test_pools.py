"""Pools of files of every small size, many in one network, against onnxruntime; and reductions of nothing."""

import itertools

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator

import conv2affine
from conv2affine.onnx import convert
from conv2affine.onnx.running.runner import runner as onnx_runner
from tests.network.models import Function
from tests.onnx.models import model, random

# Along the last axis: kernel size, stride, padding, dilation, and the mode of the output size.
WINDOWS = list(itertools.product((1, 2, 3), (1, 2), (0, 1), (1, 2), (False, True)))


def pool_nodes(op_type, x):
    """The pools of a file on which onnxruntime and the standard's own implementation agree, as text."""
    found = []
    for kernel, stride, padding, dilation, ceil in WINDOWS:
        for counted in ("", ", count_include_pad = 1") if op_type == "AveragePool" else ("",):
            window = f"kernel_shape = [{kernel}], strides = [{stride}], pads = [{padding}, {padding}]"
            node = f"{op_type}<{window}, dilations = [{dilation}], ceil_mode = {int(ceil)}{counted}>(x)"
            try:
                made = model(f"y = {node}", {"x": x.shape}, opset=19)
                results = [onnx_runner(made)({"x": x})[0], ReferenceEvaluator(made).run(None, {"x": x})[0]]
            except Exception:  # whatever one of them trips over
                continue
            if results[0].size and results[0].shape == results[1].shape and np.allclose(*results, atol=1e-6):
                found.append(node)
    return found


@pytest.mark.parametrize("op_type", ["AveragePool", "MaxPool"])
def test_a_pool_without_results_is_refused(op_type):
    with pytest.raises(NotImplementedError, match=r"output y must have elements, got shape \(1, 2, 0\)"):
        convert(model(f"y = {op_type}<kernel_shape = [2]>(x)", {"x": (1, 2, 1)}, opset=19))


def converts(node, x):
    try:
        convert(model(f"y = {node}", {"x": x.shape}, opset=19))
    except NotImplementedError as error:
        if "must have the shape that onnx infers" in str(error):
            return False
        raise
    return True


@pytest.mark.diagonal
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("op_type", ["AveragePool", "MaxPool"])
def test_small_pools_of_files(op_type, size):
    x = random(1, 2, size)
    # What onnxruntime gives in another shape than onnx infers is refused.
    nodes = [node for node in pool_nodes(op_type, x) if converts(node, x)]
    assert len(nodes) >= 8
    outputs = [f"y{number}" for number in range(len(nodes))]
    lines = "\n".join(f"{name} = {node}" for name, node in zip(outputs, nodes, strict=True))
    original = model(lines, {"x": x.shape}, outputs=outputs, opset=19)
    results = zip(nodes, onnx_runner(original)({"x": x}), onnx_runner(convert(original).model)({"x": x}), strict=True)
    for node, expected, result in results:
        np.testing.assert_allclose(result, expected, atol=1e-6, err_msg=node)


@pytest.mark.parametrize(("size", "kernel"), [(1, 2), (1, 3), (2, 3), (3, 5)])
def test_max_pools_that_are_mostly_padding(size, kernel):
    model = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 1), torch.nn.MaxPool1d(kernel, 1, kernel // 2)).double()
    x = torch.tensor(np.random.default_rng(0).normal(size=(5, 1, size)))
    mlp = conv2affine.to_mlp(model, x)
    torch.testing.assert_close(mlp(x), model(x).flatten(1), atol=1e-12, rtol=0)
    assert len(mlp) == 2 + 2 * (size - 1).bit_length()  # no more rounds than the elements of a window need


REDUCTIONS = {
    "mean": lambda x: x[:, :0].mean(1),
    "mean-of-all": lambda x: x[:, :, :0].mean((1, 2)),
    "mean-kept": lambda x: x[:, :0].mean(1, keepdim=True),
    "mean-of-no-results": lambda x: x[:, :0].mean(2),
    "sum": lambda x: x[:, :0].sum(1),
    "sum-of-all": lambda x: x[:, :, :0].sum((1, 2)),
    "cumsum": lambda x: x[:, :0].cumsum(1),
    "amax-of-no-results": lambda x: x[:, :0].amax(2),
    "min-of-no-results": lambda x: x[:, :0].min(2).values,
    "cumsum-of-others": lambda x: x[:, :0].cumsum(2),
}


@pytest.mark.parametrize("function", REDUCTIONS.values(), ids=REDUCTIONS)
def test_reductions_of_nothing(function):
    x = torch.tensor(np.random.default_rng(0).normal(size=(2, 3, 4)))
    net = conv2affine.to_linear_network(Function(lambda x: (function(x), 2 * x)), x)
    for result, expected in zip(net(x), (function(x), 2 * x), strict=True):
        torch.testing.assert_close(result, expected, atol=1e-12, rtol=0, equal_nan=True)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])
def test_reductions_of_nothing_in_files(op_type, axis):
    nodes = f"z = Slice(x, s, s, a)\nr = {op_type}<keepdims = 0>(z, b)\ny = Neg(x)"
    constants = {"s": np.int64([0]), "a": np.int64([1]), "b": np.int64([axis])}
    original = model(nodes, {"x": (1, 3, 4)}, constants, outputs=["r", "y"], opset=20)
    x = {"x": random(1, 3, 4)}
    if axis == 2:
        with pytest.raises(NotImplementedError, match=r"output r must have elements, got shape \(1, 0\)"):
            convert(original)
        return
    result = convert(original).model
    for found, expected in zip(onnx_runner(result)(x), onnx_runner(original)(x), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
