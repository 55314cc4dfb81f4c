"""
The effective receptive field
=============================

An output of L convolutions with 3 x 3 kernels can depend on (2 L + 1) x (2 L + 1) pixels.
It hardly depends on most of them: `Luo et al. (2016)
<https://arxiv.org/abs/1701.04128>`__ show that the effective receptive field is
bell-shaped, and that its width grows like the square root of L. A row of the product of
the matrices is the exact answer.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import conv2affine

CHANNELS, SIZE = 16, 49
torch.manual_seed(0)

# %%
# From one output back to the pixels
# ----------------------------------
# Of the product, only the rows of the outputs in the middle are needed, one for each
# channel. So no two matrices are multiplied: these rows are multiplied by one matrix
# after the other, from the last layer to the first. The weights are random and so are
# their signs, so the squares show the influence. Nonlinear steps are left out.


def receptive_field(layers):
    """The influence of each pixel on the middle outputs, (SIZE, SIZE), with sum 1."""
    channels = [1] + [CHANNELS] * layers
    rows = np.zeros((CHANNELS, CHANNELS, SIZE, SIZE))
    rows[range(CHANNELS), range(CHANNELS), SIZE // 2, SIZE // 2] = 1
    rows = rows.reshape(CHANNELS, -1)
    for i in reversed(range(layers)):
        conv = nn.Conv2d(channels[i], channels[i + 1], 3, padding=1, bias=False)
        rows = rows @ conv2affine.to_scipy(conv.requires_grad_(False), SIZE)
    influence = (rows**2).sum(0).reshape(SIZE, SIZE)
    return influence / influence.sum()


def width(influence):
    """The standard deviation, in pixels along one axis."""
    place = np.arange(SIZE) - SIZE // 2
    along_both = influence.sum(0), influence.sum(1)
    return math.sqrt(np.mean([weights @ place**2 for weights in along_both]))


# %%
# Theoretical and effective
# -------------------------
# The frame encloses the pixels that the output can depend on. The colours show how much
# it does.

depths = [2, 6, 12, 20]
fields = [receptive_field(layers) for layers in depths]

figure, places = plt.subplots(1, 4, figsize=(10, 3), layout="constrained")
for place, layers, field in zip(places, depths, fields, strict=True):
    place.imshow(field, cmap="magma", interpolation="nearest")
    reach = 2 * layers + 1
    corner = SIZE // 2 - layers - 0.5
    frame = plt.Rectangle((corner, corner), reach, reach, fill=False, edgecolor="white")
    place.add_patch(frame)
    place.set(title=f"{layers} layers: {reach} x {reach}", xticks=[], yticks=[])

# %%
# The width that theory predicts
# ------------------------------
# Each layer adds the variance of its three taps, (1 + 0 + 1) / 3, if all weights have the
# same distribution.

for layers, field in zip(depths, fields, strict=True):
    theory = math.sqrt(layers * 2 / 3)
    reach = np.abs(np.argwhere(field)[:, 0] - SIZE // 2).max()
    found = width(field)
    print(
        f"{layers:2} layers: reach {reach:2}, width {found:.2f}, in theory {theory:.2f}"
    )
    assert reach == layers
    assert abs(found / theory - 1) < 0.1
