"""The page of supported operators: made of what the examples become, and complete."""

import re

import pytest

from conv2affine.network.torch.importing.rules import RULES as ATEN
from conv2affine.onnx.importing.rules import RULES as ONNX
from docs import operator_tables


@pytest.mark.long
def test_every_operator_with_a_rule_is_on_the_page():
    tables = operator_tables.tables()
    examples = "".join(re.findall("<summary>Examples</summary>(.*?)</details>", tables["rules"], re.DOTALL))
    for name in (*ATEN, *ONNX):
        assert examples.count(f"\n| `{name}` | `") == 1
    assert "| `relu` | `F.relu(x)` | `relu` | 1 ReLU |" in examples
    assert "| `Conv` | `y = Conv<pads = [1, 1, 1, 1]>(x, w, b)` | copied | linear |" in examples
    assert "| `view` | `x.view(len(x), -1, 3)` | moved | linear |" in examples
    assert "| `add`, `sub` | `Add`, `Sum`, `Sub` |" in tables["rules"]
    assert "| `torch.where(h > 0, h, 0.1 * h)` | 2 |" in tables["comparisons"]
    assert "| `mul` | `x * x.flip(1)` | it multiplies values |" in tables["limits"]
    assert tables["others"].startswith("`sigmoid`, ")


def test_a_rule_without_an_example_is_an_error():
    with pytest.raises(LookupError, match="these operators have a rule and no example: Conv; add a case to"):
        operator_tables.best_uses({"Conv": ONNX["Conv"]}, [])
