"""Networks that other people made, where they are there, and why some of them are refused."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = [folder / "shared" / "networks" for folder in (ROOT.parent, ROOT)]
FOLDER = next(filter(Path.exists, PLACES), PLACES[0])
FILES = sorted(FOLDER.glob("*.onnx"))

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
