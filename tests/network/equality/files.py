"""Faults that are injected into files, and files that are almost equal."""

import numpy as np
import onnx
from onnx import numpy_helper

from tests.onnx.models import model, random
from tests.shared_networks import FOLDER


# Changes of a node of a file, by its operator and its number among those.
def numbers(place, function):
    """The constant at a place of the inputs as a function makes it."""

    def change(proto, node):
        tensor = next(each for each in proto.graph.initializer if each.name == node.input[place])
        array = function(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))

    return change


def attribute(name, value):
    def change(proto, node):
        kept = [each for each in node.attribute if each.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return change


def element_off(array):
    array.reshape(-1)[array.size // 2] += 1e-3
    return array


def rows_swapped(array):
    return array[[1, 0, *range(2, len(array))]]


def of_file(name):
    return lambda: onnx.load(FOLDER / f"{name}.onnx")


RESIZE = "c = Conv(x, w)\nr = Resize<mode = {mode}>(c, {roi}scales)\nq = Relu(r)\ny = ReduceMean<axes = [2, 3]>(q)"


def resize(mode="linear", opset=13, **attributes):
    """Before opset 11, Resize is what is asymmetric since then."""
    text = ", ".join([f'"{mode}"', *(f'{name} = "{value}"' for name, value in attributes.items())])
    constants = {"w": random(2, 1, 2, 2), "scales": np.array([1, 1, 1.7, 2], np.float32)}
    constants |= {} if opset < 11 else {"roi": np.zeros(0, np.float32)}
    nodes = RESIZE.format(mode=text, roi="roi, " if opset >= 11 else "")
    return lambda: model(nodes, {"x": (1, 1, 6, 6)}, constants, opset=opset)


SOFTMAX = "h = Gemm(x, u)\nr = Relu(h)\nz = Reshape(r, shape)\ns = Softmax(z)\nf = Flatten(s)\ny = Gemm(f, w)"


def softmax(opset):
    """Before opset 13, Softmax is over all axes from the first on; since then over the last."""
    constants = {"u": random(4, 6), "w": random(6, 2), "shape": np.array([-1, 2, 3])}
    return lambda: model(SOFTMAX, {"x": ("N", 4)}, constants, opset=opset)


def fused_norm(epsilon=1e-5, opset=13):
    """A convolution with batch norm; with an epsilon, folded as exporters do it, in float32."""
    w, b = random(3, 2, 3, 3), random(3, seed=1)
    scale, bias, mean, variance = (random(3, seed=seed) for seed in range(2, 6))
    variance = variance**2 + np.float32(0.5)
    head = "r = Relu(c)\np = AveragePool<kernel_shape = [2, 2]>(r)\ns = Sigmoid(p)\nf = Flatten(s)\ny = Gemm(f, v)"
    constants = {"v": random(27, 2, seed=6), "w": w, "b": b}
    if epsilon is None:
        nodes = "a = Conv(x, w, b)\nc = BatchNormalization<epsilon = 0.00001>(a, scale, bias, mean, variance)"
        constants |= {"scale": scale, "bias": bias, "mean": mean, "variance": variance}
    else:
        nodes, factor = "c = Conv(x, w, b)", scale / np.sqrt(variance + np.float32(epsilon))
        constants |= {"w": w * factor[:, None, None, None], "b": (b - mean) * factor + bias}
    return model(f"{nodes}\n{head}", {"x": ("N", 2, 6, 6)}, constants, opset=opset)


# Each is (file, operator, its number among those, change); or two files, and the node where they part.
FILE_FAULTS = {
    "cifar10-weight": (of_file("vnncomp2021--cifar10_small"), "Conv", 1, numbers(1, element_off)),
    "cifar10-channels": (of_file("vnncomp2021--cifar10_small"), "Conv", 0, numbers(1, rows_swapped)),
    "pooled-padding": (of_file("Marabou--conv_mp1"), "Conv", 0, attribute("pads", [2, 2, 0, 0])),
    "pooled-bias": (of_file("Marabou--conv_mp1"), "Add", 1, numbers(1, element_off)),
    "lenet-channels": (of_file("dnnv-benchmarks--lenet"), "Conv", 0, numbers(1, rows_swapped)),
    "lenet-weight": (of_file("dnnv-benchmarks--lenet"), "Gemm", 0, numbers(1, element_off)),
    "avgpool-channels": (of_file("vnncomp2021--Convnet_avgpool"), "Gemm", 0, numbers(1, rows_swapped)),
    "resnet-bias": (of_file("vnncomp2021--resnet_2b"), "Conv", 2, numbers(2, element_off)),
    "rul-weight": (of_file("vnncomp2022_benchmarks--NN_rul_small_window_20"), "Conv", 1, numbers(1, element_off)),
    "generator-weight": (of_file("vnncomp2023_benchmarks--mnist_generator"), "Gemm", 0, numbers(1, element_off)),
}
FILE_PAIRS = {
    "softmax-opset": (softmax(11), softmax(13), "s"),
    "norm-epsilon": (fused_norm, lambda: fused_norm(1e-3), "c"),
    "resize-opset": (resize(opset=10), resize(coordinate_transformation_mode="half_pixel"), "r"),
    "resize-align-corners": (
        resize(coordinate_transformation_mode="pytorch_half_pixel"),
        resize(coordinate_transformation_mode="align_corners"),
        "r",
    ),
    "resize-nearest": (
        resize("nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"),
        resize("nearest", nearest_mode="round_prefer_ceil", coordinate_transformation_mode="asymmetric"),
        "r",
    ),
}


def faulty_file(name):
    """A file, the same with a fault, and the name of the node."""
    if name in FILE_PAIRS:
        first, second, node = FILE_PAIRS[name]
        return first(), second(), node
    load, operator, number, change = FILE_FAULTS[name]
    first, second = load(), load()
    node = [node for node in second.graph.node if node.op_type == operator][number]
    change(second, node)
    return first, second, node.name or node.output[0]
