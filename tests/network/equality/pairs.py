"""Pairs of equal networks: a network, and the same after a change that must not matter."""

from __future__ import annotations

import copy
import importlib
import io
import warnings

import onnx
import torch
import torch.nn.functional as F
from onnx import version_converter
from torch import nn

import conv2affine
from conv2affine.onnx import convert, export
from tests.network.equality.faults import MODULES
from tests.network.models import Function, build
from tests.shared_networks import FOLDER

NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
CONVS = nn.Conv1d | nn.Conv2d | nn.Conv3d


def fused(net, x):
    """Each batch norm after a convolution is a part of it."""
    net = copy.deepcopy(net)
    for parent in [each for each in net.modules() if isinstance(each, nn.Sequential)]:
        for number, (conv, norm) in enumerate(zip(parent, parent[1:], strict=False)):
            if isinstance(conv, CONVS) and isinstance(norm, NORMS):
                parent[number], parent[number + 1] = nn.utils.fuse_conv_bn_eval(conv, norm), nn.Identity()
    return net


def permuted(net, x):
    """The channels between two convolutions of vgg-bn are in another order."""
    net, order = copy.deepcopy(net), torch.tensor([2, 0, 3, 1, 7, 4, 6, 5])
    for tensor in (*net[2].parameters(), *net[2].buffers()):
        if tensor.dim():
            tensor.data = tensor.data[order]
    net[3][0].weight.data = net[3][0].weight.data[:, order]
    return net


def as_functions(net, x):
    """Layers of vgg-bn written another way."""
    net, conv, last = copy.deepcopy(net), net[2][0], net[9]
    net[0][2] = Function(lambda x: torch.maximum(x, torch.zeros(())))
    net[2][0] = Function(lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1)), conv.weight))
    net[7] = Function(lambda x: x.clamp(min=0))
    net[9] = Function(lambda x: x @ last.weight.T + last.bias)
    return net


def old_exporter(net, x):
    return _exported(net, x, dynamo=False, opset_version=13)


def new_exporter(net, x):
    return _exported(net, x, dynamo=True, opset_version=18)


def _exported(net, x, **options):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(net, (x,), file, verbose=False, **options)
    return onnx.load_from_string(file.getvalue()) if program is None else program.model_proto


def simplified(proto):
    """By onnxsim."""
    result, is_right = importlib.import_module("onnxsim").simplify(copy.deepcopy(proto))
    assert is_right
    return result


def slimmed(proto):
    """By onnxslim."""
    return importlib.import_module("onnxslim").slim(copy.deepcopy(proto))


def of_opset(opset):
    return lambda proto: version_converter.convert_version(proto, opset)


def traced(net, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(net, x)


def linear_network(**options):
    return lambda net, x: conv2affine.to_linear_network(net, x, **options)


def chain(**options):
    return lambda net, x: conv2affine.to_mlp(net, x, **options)


def file_of(**options):
    return lambda net, x: export(net, x, **options).model


# Of modules; those of files come after an exporter.
CHANGES = {
    "copy": lambda net, x: copy.deepcopy(net),
    "double": lambda net, x: copy.deepcopy(net).double(),
    "fused": fused,
    "program": lambda net, x: torch.export.export(net, (x,)),
    "traced": traced,
    "linear-dense": linear_network(layout="dense", merge="never"),
    "linear-sparse": linear_network(layout="sparse", merge="always"),
    "linear-relu-double": linear_network(max_pool="relu", dtype=torch.float64),
    "old-exporter": old_exporter,
    "new-exporter": new_exporter,
    "onnxsim": lambda net, x: simplified(old_exporter(net, x)),
    "onnxslim": lambda net, x: slimmed(old_exporter(net, x)),
    "onnxsim-new": lambda net, x: simplified(new_exporter(net, x)),
    "onnxslim-new": lambda net, x: slimmed(new_exporter(net, x)),
    "opset-17": lambda net, x: of_opset(17)(old_exporter(net, x)),
    "opset-21": lambda net, x: of_opset(21)(new_exporter(net, x)),
}
PIECEWISE_CHANGES = {
    "chain-dense": chain(layout="dense"),
    "chain-sparse": chain(layout="sparse"),
    "file-graph": file_of(max_pool="relu"),
    "file-mlp": file_of(form="mlp"),
}
VGG_CHANGES = {"permuted": permuted, "functions": as_functions}
FILE_CHANGES = {
    "graph": lambda proto: convert(proto).model,
    "graph-double": lambda proto: convert(proto, merge="always", dtype=torch.float64).model,
    "mlp": lambda proto: convert(proto, form="mlp", flat=False).model,
    "onnxsim": simplified,
    "onnxslim": slimmed,
    "opset-17": of_opset(17),
}


def module_pair(network, change):
    """A module in float32, the same after a change, and an input."""
    make, shape = MODULES[network]
    net, x = build(make, torch.float32), torch.rand(1, *shape)
    return net, {**CHANGES, **PIECEWISE_CHANGES, **VGG_CHANGES}[change](net, x), x


def file_pair(name, change):
    """A file, and the same after a change."""
    proto = onnx.load(FOLDER / f"{name}.onnx")
    return proto, FILE_CHANGES[change](proto)
