"""Networks that other people made, where they are there: all are converted, or refused for a reason that is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx_models import difference, inputs

from conv2affine.onnx import convert
from conv2affine.onnx.importing.reader import read

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "networks"
FILES = sorted(FOLDER.glob("*.onnx"))
if not FILES:
    pytest.skip(f"the networks of other people are not there: {FOLDER}", allow_module_level=True)

# Why a file is refused, by the end of its name.
REFUSED = {
    "dropout_training_mode_true": (ValueError, "Dropout node y depends on chance"),
    "OMLT--maxpool_2d": (ValueError, "MaxPool node node1 must follow the rules of its operator"),
    "unet_simp_small": (MemoryError, "the largest is that of Conv_9"),
    "3_30_30_QConv_16_3_QConv_32_2_Dense_43_ep_30": (MemoryError, "that of sequential_10/quant_conv2d_21"),
    "cGAN_imgSz32_nCh_3": (MemoryError, "the largest is that of"),
    "patch-1": (NotImplementedError, "Slice node Slice_34: the shape of 263 must follow"),
}
NO_MLP = {
    **REFUSED,
    "mnist_generator": (NotImplementedError, "Sigmoid_6: Sigmoid must be"),
    "robust_model_sigmoid_linear": (NotImplementedError, "Sigmoid1: Sigmoid must be"),
    "Marabou--sigmoid": (NotImplementedError, "y: Sigmoid must be"),
    "Marabou--tanh": (NotImplementedError, "y: Tanh must be"),
    "softmax-last-layer": (NotImplementedError, "Softmax_7: Softmax must be"),
    "unet_simp_small": (NotImplementedError, "Softmax_15: Softmax must be"),
    "14_ieee_ml4acopf": (NotImplementedError, "Sigmoid: Sigmoid must be"),
    "3_30_30_QConv_16_3_QConv_32_2_Dense_43_ep_30": (NotImplementedError, "Softmax: Softmax must be"),
    "ibp_3_3_8": (NotImplementedError, "fn.1/Softmax: Softmax must be"),
    "patch-1": (NotImplementedError, "ArgMax_198: ArgMax must be"),
}


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
