"""
A residual block as a chain
===========================

Many tools read only a chain of linear layers and ReLUs, without residual
connections. `to_mlp` makes such a chain: it carries the value of the connection along, in
units of its own. What does that cost?
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import conv2affine


class Block(nn.Module):
    """Two convolutions, and a connection around them."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 2, 3, padding=1)
        self.conv2 = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + x)


torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), Block(), nn.Flatten(), nn.Linear(72, 10)
)
model.eval().requires_grad_(False)
x = torch.rand(100, 1, 6, 6)
mlp = conv2affine.to_mlp(model, x)
print(mlp)

# %%
# The input of the block is the output of a ReLU. It is never negative, so another ReLU
# does not change it, and 72 units carry it past the first convolution. A value that can
# be negative takes two units, for its positive and negative part.
#
# The four matrices
# -----------------
# One point per entry. The second matrix has the identity above the first convolution of
# the block. The third has it to the left of the second convolution, which is the
# addition.

layers = [layer for layer in mlp if isinstance(layer, nn.Linear)]
before = [72, 72, 72, 10]
after = [layer.out_features for layer in layers]

ratios = [80, *(layer.in_features for layer in layers)]  # all matrices at one scale
figure, (bars, *spies) = plt.subplots(
    1, 5, figsize=(10, 4), width_ratios=ratios, layout="constrained"
)
position = torch.arange(4)
bars.bar(position - 0.2, before, 0.4, label="network")
bars.bar(position + 0.2, after, 0.4, label="chain")
bars.set(
    title="values per layer", xticks=range(4), xticklabels=range(1, 5), ylim=(0, 190)
)
bars.legend()
for number, (spy, layer) in enumerate(zip(spies, layers, strict=True), 1):
    spy.spy(layer.weight, markersize=0.7, color="tab:blue")
    spy.set_title(f"{number}: {layer.out_features} x {layer.in_features}")
    spy.set(xticks=[], yticks=[])

# %%
# The same function
# -----------------

assert after == [72, 72 + 72, 72, 10]
assert torch.equal(layers[1].weight[:72], torch.eye(72))
difference = (mlp(x) - model(x)).abs().max().item()
print(f"The outputs differ by at most {difference:.1e}.")
assert difference < 1e-5
