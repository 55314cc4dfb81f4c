"""
The nearest image of another class
==================================

A CNN tells threes from eights. How much must each pixel change before it sees the other
digit? Verifiers answer this by mixed-integer linear programming. They need ``W x + b``
and ReLU, not a CNN: `to_mlp` gives them that, and SciPy's solver does the rest.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import LinearConstraint, milp
from sklearn.datasets import load_digits
from torch import nn

import conv2affine

# %%
# A CNN with one output
# ---------------------
# The output is positive for an eight, negative for a three.

data = load_digits()
chosen = np.isin(data.target, (3, 8))
images = torch.tensor(data.images[chosen]).unsqueeze(1) / 16
is_eight = torch.tensor(data.target[chosen] == 8).double().unsqueeze(1)

torch.manual_seed(0)
convs = nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.Conv2d(2, 4, 3, stride=2, padding=1)
cnn = nn.Sequential(
    convs[0], nn.ReLU(), convs[1], nn.ReLU(), nn.Flatten(), nn.Linear(16, 1)
).double()
optimizer = torch.optim.Adam(cnn.parameters(), lr=0.01)
for _ in range(200):
    optimizer.zero_grad()
    nn.functional.binary_cross_entropy_with_logits(cnn(images), is_eight).backward()
    optimizer.step()

mlp = conv2affine.to_mlp(cnn.requires_grad_(False), images[:1])
linear = [layer for layer in mlp if isinstance(layer, nn.Linear)]
layers = [(layer.weight.numpy(), layer.bias.numpy()) for layer in linear]
print(mlp)

# %%
# The problem for the solver
# --------------------------
# The unknowns are eps, the pixels x, and for each ReLU its output z and whether it is on
# (a = 1) or off (a = 0). Let v be W x + b, the value before the ReLU. Interval arithmetic
# gives bounds low <= v <= high, here widened to include 0. Then
#
# .. code-block:: none
#
#     z = relu(v)    is    z >= v,   z >= 0,   z <= v - low * (1 - a),   z <= high * a

LARGEST = 0.5


def nearest(image, sign):
    """The least eps for which there is an image of the other class, and that image."""
    sizes = [1, len(image), *[len(bias) for _, bias in layers[:-1] for _ in "za"]]
    pick = np.eye(sum(sizes))  # each row picks one unknown
    eps, x, *rest = np.split(pick, np.cumsum(sizes)[:-1])
    rules = [LinearConstraint(eps, ub=LARGEST), LinearConstraint(x, ub=1)]
    rules += [LinearConstraint(x - eps, ub=image), LinearConstraint(x + eps, lb=image)]
    least, most = np.maximum(image - LARGEST, 0), np.minimum(image + LARGEST, 1)
    for (W, b), z, a in zip(layers[:-1], rest[::2], rest[1::2], strict=True):
        centre, radius = W @ (least + most) / 2 + b, abs(W) @ (most - least) / 2
        low, high = np.minimum(centre - radius, 0), np.maximum(centre + radius, 0)
        rules.append(LinearConstraint(z - W @ x, lb=b))
        rules.append(LinearConstraint(z - W @ x - low[:, None] * a, ub=b - low))
        rules.append(LinearConstraint(z - high[:, None] * a, ub=0))
        rules.append(LinearConstraint(a, ub=1))
        x, least, most = z, np.zeros_like(high), high
    W, b = layers[-1]
    rules.append(LinearConstraint(sign * W @ x, ub=-sign * b))
    whole = sum(a.sum(0) for a in rest[1::2])
    found = milp(eps[0], integrality=whole, constraints=rules)  # all unknowns are >= 0
    return found.fun, found.x[1 : 1 + len(image)]


# %%
# Six images, and their nearest counterexamples
# ---------------------------------------------
# Each counterexample lies on the boundary between the classes. No smaller change crosses
# it: that is what the solver has proved, and a thousand random changes agree.

right = ((cnn(images) > 0) == (is_eight > 0)).flatten()
figure, places = plt.subplots(2, 6, figsize=(10, 4), layout="constrained")
for (above, below), image in zip(places.T, images[right][:6], strict=True):
    sign = cnn(image[None]).sign()
    eps, pixels = nearest(image.flatten().numpy(), sign.item())
    counterexample = torch.from_numpy(pixels).reshape(image.shape)
    above.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    above.set(title="eight" if sign > 0 else "three", xticks=[], yticks=[])
    below.imshow(counterexample[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    below.set(title=f"eps = {eps:.3f}", xticks=[], yticks=[])

    assert 0 < eps < LARGEST
    assert cnn(counterexample[None]).abs() < 1e-6
    signs = torch.rand(1000, *image.shape).round() * 2 - 1
    smaller = (image + 0.99 * eps * signs).clamp(0, 1)
    assert (cnn(smaller).sign() == sign).all()
