"""Networks that other people made, where they are there: all are converted, or refused for a reason that is known."""

from __future__ import annotations

import pytest

from conv2affine.onnx import convert
from conv2affine.onnx.importing.reader import read
from tests.onnx.models import difference, inputs
from tests.shared_networks import FILES, FOLDER, NO_MLP, REFUSED

if not FILES:
    pytest.skip(f"the networks of other people are not there: {FOLDER}", allow_module_level=True)


@pytest.mark.diagonal
@pytest.mark.parametrize("form", ["graph", "mlp"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_network(path, form):
    known = REFUSED if form == "graph" else NO_MLP
    reason = next((known[name] for name in known if path.stem.endswith(name)), None)
    if reason is not None:
        with pytest.raises(reason[0], match=reason[1]):
            convert(path, form=form)
        return
    result = convert(path, form=form)
    original = read(path).proto
    for seed in (1, 2):
        assert difference(original, result.model, inputs(result.model, 2, seed)) <= 1e-5
    assert "" not in {node.name for node in result.model.graph.node}
