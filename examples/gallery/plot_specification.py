"""
From a specification to an answer
=================================

Can a CNN take a three for an eight if each pixel changes by at most eps? A file in
VNN-LIB asks this. `onnx.convert` makes the chain of linear layers and ReLUs for these
images only, with the bounds of each layer, and a solver answers.

For the MILP solver HiGHS, each ReLU whose bounds have both signs is open, and needs a
binary variable: the fewer there are, the sooner it finds such an image, or proves that
there is none. The code for that is in
``examples/verify_vnnlib.py``. Run this page in a clone, after
``pip install '.[verify]'``, by ``python -m examples.gallery.plot_specification``.
"""

import warnings
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from examples.verify_vnnlib import decide

# %%
# A network in a file
# -------------------

data = load_digits()
images = torch.tensor(data.images).float().unsqueeze(1) / 16
labels = torch.tensor(data.target)
torch.manual_seed(0)
cnn = nn.Sequential(
    *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)),
)
optimizer = torch.optim.Adam(cnn.parameters(), lr=0.02)
for _ in range(60):
    optimizer.zero_grad()
    nn.functional.cross_entropy(cnn(images), labels).backward()
    optimizer.step()

folder = Path(mkdtemp())
network = folder / "cnn.onnx"
warnings.simplefilter("ignore", DeprecationWarning)  # this exporter needs no onnxscript
torch.onnx.export(cnn.eval(), (images[:1],), network, dynamo=False)

# %%
# A specification in a file
# -------------------------
# It says when the network is unsafe: X_0, X_1, ... are the pixels, each at most eps from
# that of a three, and Y_0, Y_1, ... the scores. Here the eight scores at least as much as
# the three.

three = images[labels == 3][0].double()


def specification(eps):
    """The file for one eps."""
    lines = [f"(declare-const X_{number} Real)" for number in range(64)]
    lines += [f"(declare-const Y_{number} Real)" for number in range(10)]
    for number, pixel in enumerate(three.flatten().tolist()):
        low, high = max(pixel - eps, 0), min(pixel + eps, 1)
        lines.append(f"(assert (and (>= X_{number} {low}) (<= X_{number} {high})))")
    path = folder / f"{eps}.vnnlib"
    path.write_text("\n".join([*lines, "(assert (>= Y_8 Y_3))"]))
    return path


# %%
# The same question for larger and larger eps
# -------------------------------------------
# "unsat" is the proof, and "sat" comes with an image. For comparison, each question is
# asked of the chain for all images too, with bounds from interval arithmetic.

radii = [0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.1]
specs = [specification(eps) for eps in radii]
answers = {
    "chain for the box": [decide(network, spec, seconds=5) for spec in specs],
    "chain for all": [decide(network, spec, seconds=5, whole=True) for spec in specs],
}
for label, found in answers.items():
    print(f"{label}: {', '.join(answer.verdict for answer in found)}")

figure, places = plt.subplots(
    1, 4, figsize=(11, 3), width_ratios=[1, 1, 2, 2], layout="constrained"
)
witness = answers["chain for the box"][-1].witness
for place, pixels, title in zip(
    places, (three, witness), ("a three", "an eight"), strict=False
):
    place.imshow(np.reshape(pixels, (8, 8)), cmap="gray_r", vmin=0, vmax=1)
    place.set(title=title, xticks=[], yticks=[])
markers = {"unsat": "o", "sat": "x", "timeout": "^"}
for number, (label, found) in enumerate(answers.items()):
    places[2].plot(
        radii, [answer.binaries for answer in found], f"C{number}", label=label
    )
    places[3].plot(radii, [answer.seconds for answer in found], f"C{number}")
    for eps, answer in zip(radii, found, strict=True):
        places[3].plot(eps, answer.seconds, markers[answer.verdict], color=f"C{number}")
for verdict, marker in markers.items():
    places[3].plot([], [], f"k{marker}", label=verdict)
places[2].set(title="open ReLUs", xlabel="eps", ylim=0)
places[3].set(title="seconds", xlabel="eps", ylim=0)
for place in places[2:]:
    place.legend()

# %%
# What the CNN says to it
# -----------------------
# No random image contradicts a proof, and the CNN takes the image that was found for an
# eight.

for eps, answer in zip(radii, answers["chain for the box"], strict=True):
    near = (three + eps * (2 * torch.rand(5000, 1, 8, 8).round() - 1)).clamp(0, 1)
    scores = cnn(near.float())
    assert answer.verdict != "unsat" or (scores[:, 8] < scores[:, 3]).all()
scores = cnn(torch.tensor(witness).float().view(1, 1, 8, 8))[0]
assert answer.verdict == "sat"
assert scores[8] >= scores[3] - 1e-4
