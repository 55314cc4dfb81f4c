"""Faults that are injected into modules: each is (change, the module that it changes), by network and name."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tests.network.models import OTHERS, PIECEWISE, build


# Changes of a module, by its name.
def off(name, parameter="weight", place=0.5):
    """One element off by 1e-3."""

    def change(net):
        tensor = net.get_submodule(name).get_parameter(parameter)
        tensor.data.view(-1)[int(place * tensor.numel())] += 1e-3

    return change


def with_(name, **attributes):
    def change(net):
        for key, value in attributes.items():
            setattr(net.get_submodule(name), key, value)

    return change


def replaced(name, make):
    def change(net):
        net.set_submodule(name, make(net.get_submodule(name)))

    return change


def edited(name, function, tensors=("weight",)):
    """Tensors of a module as a function makes them."""

    def change(net):
        for each in tensors:
            tensor = getattr(net.get_submodule(name), each)
            tensor.data.copy_(function(tensor.data.clone()))

    return change


def swapped(tensor):
    """The first two channels of the output in each other's place."""
    return tensor[[1, 0, *range(2, len(tensor))]]


def in_bits(bits):
    """Quantised to this many bits, with one step for the whole tensor."""

    def rounded(tensor):
        step = tensor.abs().max() / (2 ** (bits - 1) - 1)
        return (tensor / step).round() * step

    return rounded


def other_side(layer):
    """Padding of 2 before and 0 behind in place of 1 and 1."""
    layer = copy.deepcopy(layer)
    axes = len(layer.padding)
    layer.padding = layer._reversed_padding_repeated_twice = (0,) * axes
    kind = {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d}[axes]
    return nn.Sequential(kind((2, 0) * axes, 0.0), layer)


def channels_last(tensor):
    """Columns for the elements of (channels, 4, 4) -> (4, 4, channels) flattened."""
    return tensor.unflatten(1, (-1, 2, 2)).movedim(1, 3).flatten(1)


class Resized(nn.Module):
    """Two interpolations, and pooling that does not count its padding."""

    def __init__(self):
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.pool, self.near = nn.AvgPool2d(3, 2, 1, count_include_pad=True), nn.Upsample(size=(8, 8), mode="nearest")
        self.deep, self.gate, self.out = nn.Conv2d(4, 4, 3, padding=1), nn.Softmax(1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.pool(self.up(torch.relu(self.conv(x))))
        return self.out(self.gate(self.deep(self.near(x))))


MODULES = {**PIECEWISE, **OTHERS, "resized": (Resized, (3, 8, 8))}
FAULTS = {
    "resnet": {
        "weight": (off("0.0"), "0.0"),
        "weight-deep": (off("3.body.1.0", place=0.9), "3.body.1.0"),
        "weight-shortcut": (off("3.shortcut.0"), "3.shortcut.0"),
        "bias": (off("6", "bias"), "6"),
        "channels": (edited("2.body.0.0", swapped), "2.body.0.0"),
        "dilation": (with_("3.body.1.0", dilation=(2, 2), padding=(2, 2)), "3.body.1.0"),
        "weight-last": (off("6"), "6"),
        "epsilon": (with_("3.shortcut.1", eps=1e-3), "3.shortcut.1"),
        "int8": (edited("3.body.0.0", in_bits(8)), "3.body.0.0"),
        "max-pool-window": (with_("1", kernel_size=2, padding=0), "1"),
        "max-pool-average": (replaced("1", lambda _: nn.AvgPool2d(3, 2, 1)), "1"),
    },
    "preact-resnet": {
        "stride-by-dilation": (with_("0", dilation=(2, 2), padding=(2, 2)), "0"),
        "mean": (edited("1.body.0", lambda x: x + 1e-3, ["running_mean"]), "1.body.0"),
        "variance": (edited("2.body.3", lambda x: x * 1.01, ["running_var"]), "2.body.3"),
        "padding-mode": (replaced("2.body.2", lambda x: _padded(x, "replicate")), "2.body.2"),
        "padding-side": (replaced("1.body.2", other_side), "1.body.2"),
        "channels": (edited("1.body.5", swapped, ["weight", "bias"]), "1.body.5"),
    },
    "vgg-bn": {
        "weight": (off("2.0"), "2.0"),
        "flatten-order": (edited("6", channels_last), "6"),
        "int4-last": (edited("9", in_bits(4)), "9"),
        "float16": (edited("3.0", lambda x: x.half().float()), "3.0"),
        "leaky": (replaced("7", lambda _: nn.LeakyReLU(0.01)), "7"),
        "image-channels": (edited("0.0", lambda x: x.flip(1)), "0.0"),
    },
    "mobilenet": {
        "stride": (with_("2.3", stride=(1, 1)), "2.3"),
        "channels-depthwise": (edited("1.body.3", swapped), "1.body.3"),
        "epsilon": (with_("2.1", eps=1e-3), "2.1"),
        "clip": (replaced("2.2", lambda _: nn.Hardtanh(0, 5.9)), "2.2"),
        "clip-lost": (replaced("1.body.2", lambda _: nn.ReLU()), "1.body.2"),
        "bias-lost": (edited("2.6", torch.zeros_like, ["bias"]), "2.6"),
    },
    "unet": {
        "weight-transposed": (off("up2"), "up2"),
        "flipped-transposed": (edited("up2", lambda x: x.flip(2)), "up2"),
        "int8-transposed": (edited("up2", in_bits(8)), "up2"),
        "channels-of-skip": (edited("merge1.0", lambda x: x.roll(4, 1)), "merge1.0"),
        "last": (off("last", "bias"), "last"),
    },
    "temporal": {
        "causal": (replaced("0.body.0", lambda _: nn.ConstantPad1d((1, 1), 0.0)), "0.body.0"),
        "slope": (with_("1.body.2", negative_slope=0.21), "1.body.2"),
        "padding-value": (with_("1.body.0", value=0.01), "1.body.0"),
    },
    "volumetric": {
        "padding-mode": (replaced("0", lambda x: _padded(x, "zeros")), "0"),
        "clip": (with_("5", max_val=0.9), "5"),
        "max-pool": (replaced("3", lambda _: nn.AvgPool3d(2)), "3"),
    },
    "shufflenet": {
        "slope": (off("last", place=0), "last"),
        "groups": (edited("mix", lambda x: x.roll(4, 0)), "mix"),
    },
    "squeeze-excite": {
        "weight": (off("expand"), "expand"),
        "bias": (off("reduce", "bias"), "reduce"),
    },
    "transformer": {
        "epsilon": (with_("layer.norm1", eps=1e-3), "layer.norm1"),
        "weight": (off("layer.linear1"), "layer.linear1"),
    },
    "resized": {
        "weight": (off("deep"), "deep"),
        "nearest": (with_("up", mode="nearest", align_corners=None), "up"),
        "operator": (replaced("gate", lambda _: nn.Sigmoid()), "gate"),
        "align-corners": (with_("up", align_corners=True), "up"),
        "bicubic": (with_("up", mode="bicubic"), "up"),
        "nearest-exact": (with_("near", mode="nearest-exact"), "near"),
        "count-include-pad": (with_("pool", count_include_pad=False), "pool"),
        "softmax-axis": (with_("gate", dim=2), "gate"),
        "int8": (edited("deep", in_bits(8)), "deep"),
    },
}


def _padded(layer, mode):
    other = type(layer)(layer.in_channels, layer.out_channels, layer.kernel_size, padding=1, padding_mode=mode)
    other.load_state_dict(layer.state_dict())
    return other.eval()


def faulty(network, fault):
    """A module in float32, the same with a fault, an input, and the name of what was changed."""
    make, shape = MODULES[network]
    change, name = FAULTS[network][fault]
    first, second = build(make, torch.float32), build(make, torch.float32)
    change(second)
    return first, second.eval(), torch.rand(1, *shape), name
