"""Functions of models, and what a call of one leaves open."""

import numpy as np
import pytest
from onnx import parser

from conv2affine.onnx import convert
from conv2affine.onnx.running.runner import runner

MODEL = """
<ir_version: 10, opset_import: ["" : 15, "my" : 1]>
test (float[N, 4] x) => (float[N, 4] y) <float[4] c = {1, 2, 3, 4}> { %s }
"""
LEAKY = """
<domain: "my", opset_import: ["" : 15]>
leaky <slope: float = 0.5> (x) => (y) { y = LeakyRelu<alpha: float = @slope>(x) }
"""
CALLS = """
<domain: "my", opset_import: ["" : 15, "my" : 1]>
f <s> (x) => (y) { y = my.leaky<slope: float = @s>(x) }
"""
TWO = '<domain: "my", opset_import: ["" : %d]> f (a) => (c, b) { c = Abs(a) \n b = Neg(a) }'
SOFT = '<domain: "my", opset_import: ["" : %d]> f (x) => (y) { y = Softmax(x) }'
FUNCTIONS = {
    "default": ("y = my.leaky(x)", LEAKY, lambda x: np.where(x > 0, x, x / 2)),
    "given": ("y = my.leaky<slope = 0.25>(x)", LEAKY, lambda x: np.where(x > 0, x, x / 4)),
    "default-of-an-inner-function": ("y = my.f(x)", CALLS + LEAKY, lambda x: np.where(x > 0, x, x / 2)),
    "inner-function": ("y = my.f<s = 0.25>(x)", CALLS + LEAKY, lambda x: np.where(x > 0, x, x / 4)),
    "output-left-out": ("d, y = my.f(x)", TWO % 15, lambda x: -x),
    "same-names": (
        "b = my.f(x) \n d = my.f(b) \n y = Add(d, c)",
        '<domain: "my", opset_import: ["" : 15]> f (a) => (b) { c = Abs(a) \n b = Neg(c) }',
        lambda x: np.arange(1, 5) - abs(x),
    ),
    "input-left-out": (
        "y = my.f(x)",
        '<domain: "my", opset_import: ["" : 15]> f (a, low) => (b) { c = Clip(a, low) \n b = Neg(c) }',
        lambda x: -x,
    ),
}


@pytest.mark.parametrize(("nodes", "functions", "function"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions(nodes, functions, function):
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    [y] = runner(convert(parser.parse_model(MODEL % nodes + functions)).model)({"x": x})
    np.testing.assert_allclose(y, function(x), rtol=1e-6)


REFUSED = {
    "operator": (
        "y = Relu(x)",
        '<domain: "", opset_import: ["" : 15]> Relu (a) => (b) { b = Neg(a) }',
        "name of an op",
    ),
    "another-opset": ("y = my.f(x)", SOFT % 11, r"my::f.* version 15 in the model but version 11 in the function"),
    "itself": (
        "y = my.f(x)",
        '<domain: "my", opset_import: ["my" : 1]> f (a) => (b) { b = my.f(a) }',
        "call themselves",
    ),
    "twice": ("y = my.f(x)", SOFT % 15 + SOFT % 15, "must differ in their domain, name or overload"),
    "unknown-name": (
        "y = my.f(x)",
        '<domain: "my", opset_import: ["" : 15]> f (a) => (b) { b = Neg(c) }',
        "valid ONNX: Nodes in a function must be topologically sorted, however input 'c' of node",
    ),
    "no-output": (
        "y = my.f(x)",
        '<domain: "my", opset_import: ["" : 15]> f (a) => (b) { c = Neg(a) }',
        "function f must make all its outputs, and does not make b",
    ),
    "same-result-twice": (
        "y = my.leaky(x) \n y = my.leaky(x)",
        LEAKY,
        "onnx_ir writes out: Output 'y' is redeclared",
    ),
    "inputs": ("y = my.leaky(x, x)", LEAKY, "my::leaky.* has 2 inputs but function defines at most 1"),
}


@pytest.mark.parametrize(("nodes", "functions", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_functions(nodes, functions, message):
    with pytest.raises(ValueError, match=message):
        convert(parser.parse_model(MODEL % nodes + functions))
