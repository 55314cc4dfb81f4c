"""
A CNN as linear layers
======================

A small CNN learns handwritten digits. One call then replaces its convolutions by linear
layers; another turns the whole network into a plain multilayer perceptron (MLP). Both
predict what the CNN predicts.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import conv2affine

# %%
# The network
# -----------
# It has what tools for MLPs usually refuse: padding, batch norm, strides and max pooling.

data = load_digits()
images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(data.target)
train, test = slice(1200), slice(1200, None)

torch.manual_seed(0)
cnn = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(8, 16, 3, stride=2, padding=1),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(16 * 2 * 2, 10),
)
optimizer = torch.optim.Adam(cnn.parameters(), lr=0.01)
for _ in range(20):
    for batch in torch.randperm(1200).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(cnn(images[batch]), labels[batch]).backward()
        optimizer.step()
cnn.eval().requires_grad_(False)

# %%
# Both conversions
# ----------------
# The example input gives the sizes. `to_linear_network` keeps every step that is not
# affine, here the ReLUs and the max pooling; `to_mlp` writes the max pooling as linear
# layers and ReLUs, too.

net = conv2affine.to_linear_network(cnn, images[:1])
mlp = conv2affine.to_mlp(cnn, images[:1])
print(net.plan)
print(mlp)

# %%
# The first matrix
# ----------------
# One point per weight. Each of the eight channels has a band of 64 rows, and each row
# holds one 3 x 3 kernel.

linear = next(layer for layer in net.modules() if isinstance(layer, nn.Linear))
figure, axes = plt.subplots(figsize=(4, 8), layout="constrained")
limit = linear.weight.abs().max().item()
axes.imshow(
    linear.weight.numpy(), cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest"
)
axes.set(xlabel="input pixel", ylabel="output value", yticks=range(0, 513, 64))

# %%
# The same predictions
# --------------------

expected = cnn(images[test])
for converted in net, mlp:
    torch.testing.assert_close(converted(images[test]), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(converted(images[test]).argmax(1), expected.argmax(1))

accuracy = (expected.argmax(1) == labels[test]).double().mean().item()
print(f"CNN, net and mlp: {accuracy:.1%} of {len(expected)} test images are right.")
assert accuracy > 0.9
