"""Affine operators over positions alone, over their arguments: each as one linear layer, equal to PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conv2affine import to_linear
from tests.network.models import Converted
from tests.network.rules.operands import IMAGE, LINE, VOLUME, assert_linear, constant

GRID = constant(1, 3, 4, 2)
AFFINE = {
    # Convolutions
    "conv1d": (nn.Conv1d(2, 3, 3, 2, 1), LINE),
    "conv2d": (nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 2), (1, 2), groups=2), IMAGE),
    "conv3d": (nn.Conv3d(2, 3, 2, padding=1, bias=False), VOLUME),
    "conv-by-its-operator": (
        lambda x: torch._convolution(x, constant(3, 2, 3, 3), None, [1], [1], [1], False, [0], 1, False, False, True),
        IMAGE,
    ),
    "conv-of-time-first": (
        lambda x: torch.conv_tbc(x.transpose(0, 1).contiguous(), constant(3, 6, 4), constant(4), 1).transpose(0, 1),
        LINE,
    ),
    "conv-same": (nn.Conv2d(2, 3, (2, 3), padding="same"), IMAGE),
    "conv-circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), IMAGE),
    "conv-reflect-same": (nn.Conv1d(2, 3, 4, padding="same", padding_mode="reflect"), LINE),
    "conv-transposed-1d": (nn.ConvTranspose1d(2, 3, 3, 2, 1, 1), LINE),
    "conv-transposed-2d": (nn.ConvTranspose2d(2, 4, 3, 2, 1, groups=2, dilation=2, output_padding=1), IMAGE),
    "conv-transposed-3d": (nn.ConvTranspose3d(2, 1, 2), VOLUME),
    "conv-for-each-frame": (
        lambda x: F.conv1d(x.flatten(0, 1), constant(4, 5, 3), constant(4)).unflatten(0, (-1, 2)),
        IMAGE,
    ),
    "conv-weight-computed": (lambda x: F.conv2d(x, F.normalize(constant(3, 2, 3, 3), dim=1)), IMAGE),
    # Pooling
    "avg-pool-1d": (nn.AvgPool1d(3, 2, 1), LINE),
    "avg-pool-2d": (nn.AvgPool2d((2, 3), (1, 2)), IMAGE),
    "avg-pool-3d": (nn.AvgPool3d(2, padding=1), VOLUME),
    "avg-pool-ceil": (nn.AvgPool2d(2, ceil_mode=True), IMAGE),
    "avg-pool-ceil-padding": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "avg-pool-without-padding": (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), IMAGE),
    "avg-pool-divisor": (nn.AvgPool2d(3, 2, 1, divisor_override=5), IMAGE),
    "adaptive-avg-pool-1d": (nn.AdaptiveAvgPool1d(4), LINE),
    "adaptive-avg-pool-2d": (nn.AdaptiveAvgPool2d((3, 4)), IMAGE),
    "adaptive-avg-pool-3d": (nn.AdaptiveAvgPool3d((2, None, 3)), VOLUME),
    "global-avg-pool": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "lp-pool-1": (lambda x: F.avg_pool2d(x, 2) * 4, IMAGE),
    # Resizing
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), IMAGE),
    "bilinear-aligned": (lambda x: F.interpolate(x, (3, 9), mode="bilinear", align_corners=True), IMAGE),
    "bilinear-scale": (lambda x: F.interpolate(x, scale_factor=(1.7, 0.6), mode="bilinear"), IMAGE),
    "linear-1d": (lambda x: F.interpolate(x, 9, mode="linear"), LINE),
    "trilinear": (lambda x: F.interpolate(x, (2, 7, 6), mode="trilinear"), VOLUME),
    "bicubic": (lambda x: F.interpolate(x, (7, 4), mode="bicubic"), IMAGE),
    "bicubic-scale": (lambda x: F.interpolate(x, scale_factor=1.3, mode="bicubic", align_corners=True), IMAGE),
    # Resampling
    "grid-sample": (lambda x: F.grid_sample(x, GRID.expand(len(x), -1, -1, -1), align_corners=False), IMAGE),
    "grid-sample-nearest": (
        lambda x: F.grid_sample(x, GRID.expand(len(x), -1, -1, -1), "nearest", "border", align_corners=True),
        IMAGE,
    ),
    "grid-sample-cubic": (
        lambda x: F.grid_sample(x, 3 * GRID.expand(len(x), -1, -1, -1), "bicubic", "reflection", align_corners=False),
        IMAGE,
    ),
    "grid-sample-3d": (
        lambda x: F.grid_sample(x, constant(1, 2, 3, 2, 3).expand(len(x), -1, -1, -1, -1), align_corners=False),
        VOLUME,
    ),
    "antialiased": (lambda x: F.interpolate(x, (3, 4), mode="bilinear", antialias=True), IMAGE),
    "antialiased-cubic": (lambda x: F.interpolate(x, scale_factor=0.6, mode="bicubic", antialias=True), IMAGE),
}


LINEAR = Converted(to_linear, AFFINE)


@pytest.mark.parametrize("name", AFFINE)
def test_affine(name):
    assert_linear(LINEAR, name, AFFINE[name][1])
