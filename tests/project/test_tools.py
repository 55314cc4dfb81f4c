"""The blocks of docs/tools.md: each runs, if its tool is installed, and gives what the network of the page does."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs/tools.md").read_text()
BLOCKS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
NETWORK = BLOCKS.pop("The network of the examples")


def packages(code):
    """What a block imports."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def test_every_tool_has_a_block():
    assert len(BLOCKS) == PAGE.count("\n## ") - 2  # the table, and the network


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of the tools
@pytest.mark.parametrize("tool", BLOCKS)
def test_block(tool, tmp_path, monkeypatch):
    missing = [name for name in packages(BLOCKS[tool]) if not find_spec(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    exec(NETWORK, names)
    exec(BLOCKS[tool], names)
    CHECKS[next(name for name in CHECKS if name in names)](names)


def check_outputs(names):
    y = torch.as_tensor(np.asarray(names["y"])).float().reshape(1, 3)
    torch.testing.assert_close(y, names["expected"], atol=1e-4, rtol=1e-4)


def check_largest(names):
    """No image nearby has more; and there is one that has almost as much, since the network is nearly affine there."""
    corners = 0.01 * torch.rand(1000, 1, 8, 8).sub(0.5).sign()
    scores = names["model"](names["x"] + corners)[:, 0]
    assert scores.max() - 1e-4 <= names["largest"] <= names["expected"][0, 0] + 0.01 * 64


def check_verdict(names):
    """A proof that no corner contradicts, or an image that the network confirms."""
    model, (low, high), limit = names["model"], names["box"], names["limit"]
    if names["verdict"] == "unsat":
        x = names["x"].clone().requires_grad_()
        [gradient] = torch.autograd.grad(model(x)[0, 0], x)
        corners = torch.where(torch.cat([gradient, torch.randn(1000, *x.shape[1:])]) < 0, low, high)
        assert model(corners)[:, 0].max() < limit
    else:
        image = torch.tensor([names["values"][pixel] for pixel in names["pixels"]]).float().view_as(low)
        assert model(image)[0, 0] > limit - 1e-5


def check_layers(names):
    arrays = names.get("arrays", {})
    y = names["x"].flatten().numpy()
    for number, (weight, bias) in enumerate(names.get("layers") or zip(*[iter(by_layer(arrays))] * 2, strict=True)):
        y = weight @ (np.maximum(y, 0) if number else y) + bias.ravel()
    np.testing.assert_allclose(y, names["expected"][0], atol=1e-5)


def by_layer(arrays):
    """W1, b1, W2, b2, ..."""
    return [arrays[name] for name in sorted(arrays, key=lambda name: (int(name[1:]), name))]


def check_matrix(names):
    conv, x = names["convs"][0], names["x"]
    y = names["A"] @ x.flatten().numpy() + conv.bias.detach().repeat_interleave(16).numpy()
    np.testing.assert_allclose(y, conv(x).detach().flatten(), atol=1e-5)


def check_conversion(names):
    assert names["result"].difference < 1e-5
    assert not names["result"].kept


# By what a block makes.
CHECKS = {
    "verdict": check_verdict,
    "result": check_conversion,
    "y": check_outputs,
    "largest": check_largest,
    "A": check_matrix,
    "arrays": check_layers,
    "layers": check_layers,
}
