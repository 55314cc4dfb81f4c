"""
What a CNN computes at an image
===============================

Around an image, a CNN of convolutions, ReLUs and max pooling is one affine map: each
class has a filter as large as the image, and a number. `linear_region` gives the filters,
and how far it is to the nearest wall, where a ReLU turns on or off or another element of
a window becomes the largest.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import conv2affine

# %%
# A CNN that reads digits
# -----------------------
# A little noise keeps the images off the walls: in a constant background, the elements
# of a window are all equal.

data = load_digits()
torch.manual_seed(0)
images = torch.tensor(data.images[:500]).unsqueeze(1) / 16
images += 0.01 * torch.randn_like(images)
labels = torch.tensor(data.target[:500])

cnn = nn.Sequential(
    *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(64, 10)),
).double()
optimizer = torch.optim.Adam(cnn.parameters(), lr=0.01)
for _ in range(80):
    optimizer.zero_grad()
    nn.functional.cross_entropy(cnn(images), labels).backward()
    optimizer.step()
cnn.requires_grad_(False)
print(f"{(cnn(images).argmax(1) == labels).double().mean():.0%} of the images are right.")

# %%
# The filters at one image
# ------------------------
# The score of a class is the sum of filter times image, plus its number. Where the filter
# is red, a darker pixel raises the score; where it is blue, it lowers it.

x = images[:1]
region = conv2affine.linear_region(cnn, x)
scores = region.weight @ x.flatten() + region.bias
assert torch.allclose(scores, cnn(x)[0])

figure, places = plt.subplots(1, 11, figsize=(11, 1.6), layout="constrained")
places[0].imshow(x[0, 0].numpy(), cmap="gray_r")
places[0].set_title("image")
largest = region.weight.abs().max()
for number, place in enumerate(places[1:]):
    filter = region.weight[number].view(8, 8)
    place.imshow(filter.numpy(), cmap="seismic", vmin=-largest, vmax=largest)
    place.set_title(f"{number}: {scores[number]:.1f}")
for place in places:
    place.set(xticks=[], yticks=[])

# %%
# How far the map holds
# ---------------------
# A batch of images is computed at once. Along the straight line to another image there
# are many walls, and between two of them the scores are affine.

regions = conv2affine.linear_region(cnn, images[:100])
print(
    f"The nearest wall is at a distance of {regions.radius.median():.4f}, in the median."
)

line = torch.linspace(0, 1, 200, dtype=torch.float64).view(-1, 1, 1, 1)
path = images[:1] + line * (images[1:2] - images[:1])
along = conv2affine.linear_region(cnn, path)
pieces = torch.cat([steps.flatten(1) for steps in along.pattern.values()], 1)
crossed = (pieces[1:] != pieces[:-1]).sum(1)
print(
    f"{int((crossed > 0).sum())} of 199 steps from one image to the other cross a wall."
)

figure, (above, below) = plt.subplots(
    2, 1, figsize=(7, 5), sharex=True, layout="constrained"
)
above.plot(line.flatten().numpy(), cnn(path)[:, :2].numpy(), label=["class 0", "class 1"])
above.set_ylabel("score")
above.legend()
below.semilogy(line.flatten().numpy(), along.radius.numpy(), color="tab:green")
below.set(xlabel="from an image of 0 to one of 1", ylabel="distance to the nearest wall")

# %%
# Inside, the CNN is its filters
# ------------------------------

direction = nn.functional.normalize(torch.randn(100, 64, dtype=torch.float64)).view(
    -1, 1, 8, 8
)
inside = images[:100] + 0.999 * regions.radius.view(-1, 1, 1, 1) * direction
assert regions.contains(inside).all()
filtered = (regions.weight @ inside.flatten(1).unsqueeze(2)).squeeze(2) + regions.bias
assert torch.allclose(filtered, cnn(inside))
