"""A solver that cannot read a CNN proves statements about it, from the equal chain of Gemm and Relu.

OMLT hands networks to optimisers. It refuses the CNN below, which pads, strides, pools and has a residual connection.
`conv2affine.onnx.convert(..., form="mlp")` makes a chain of it, about which HiGHS answers, for each image: can a change
of each pixel by at most eps change the class? The answer is a proof, or an image, which the CNN itself confirms.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyomo.environ as pyo
import torch
from matplotlib.figure import Figure
from omlt import OmltBlock
from omlt.io import load_onnx_neural_network
from omlt.neuralnet import ReluBigMFormulation
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import conv2affine.onnx
from examples.digits import digits, train

# The margin in the logits that a counterexample must have: more than the solver's tolerances.
MARGIN = 1e-4


class ResidualCnn(nn.Module):
    """A CNN with one of each operator that OMLT does not read."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(4 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(x) + x)
        return self.head(self.pool(x).flatten(1))


@dataclass(frozen=True)
class Answer:
    """What the solver found for one image.

    Args:
        image: (8, 8).
        label: The class of the image, as the CNN sees it.
        found: An image of another class, or None for the proof that there is none.
        other: The class of that.
        seconds: It took.
    """

    image: Any
    label: int
    found: Any
    other: int | None
    seconds: float


def main(arguments: Sequence[str] | None = None) -> list[Answer]:
    """Train, export, convert, ask the solver, show."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--eps", type=float, default=0.04, help="change of a pixel, of 1 from black to white")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/verify"))
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)

    train_images, test_images, train_labels, test_labels = digits()
    torch.manual_seed(0)
    cnn = train(ResidualCnn(options.channels), train_images, train_labels)
    accuracy = (cnn(test_images).argmax(1) == test_labels).double().mean().item()
    original, converted = options.output / "cnn.onnx", options.output / "mlp.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the exporter that needs no other package
        torch.onnx.export(cnn, (test_images[:1],), original, dynamo=False, opset_version=13)
    console.print(f"A CNN with an accuracy of {accuracy:.1%} on the test images: {operators(original)}")
    try:
        load_onnx_neural_network(onnx.load(original), input_bounds=bounds(test_images[0], options.eps))
    except Exception as error:  # of any kind
        console.print(f"OMLT refuses it: {type(error).__name__}: {error}")

    result = conv2affine.onnx.convert(original, converted, form="mlp", overwrite=True)
    console.print(f"Converted, equal to {result.difference:.0e}: {operators(converted)}")
    chosen = test_images[cnn(test_images).argmax(1) == test_labels][: options.images]
    answers = [ask(cnn, onnx.load(converted), image, options.eps) for image in chosen]
    console.print(table(answers, options.eps))
    draw(answers, options.output / "counterexamples.png")
    console.print(f"Pictures of the counterexamples: {options.output / 'counterexamples.png'}")
    return answers


def operators(path: Path) -> str:
    """The operators of a model, in order."""
    return " ".join(node.op_type for node in onnx.load(path).graph.node)


def bounds(image: Tensor, eps: float) -> dict[Any, tuple[float, float]]:
    """The range of each pixel."""
    low, high = (image - eps).clamp(0, 1).numpy(), (image + eps).clamp(0, 1).numpy()
    return {(0, *index): (float(low[index]), float(high[index])) for index in np.ndindex(*image.shape)}


def ask(cnn: nn.Module, model: onnx.ModelProto, image: Tensor, eps: float) -> Answer:
    """Look for an image near this one that is of another class, one class after the other."""
    start = time.perf_counter()
    scores = cnn(image[None])[0].detach()
    label = int(scores.argmax())
    problem = pyo.ConcreteModel()
    problem.network = OmltBlock()
    network = load_onnx_neural_network(model, input_bounds=bounds(image, eps))
    problem.network.build_formulation(ReluBigMFormulation(network))
    outputs = problem.network.outputs
    for other in scores.argsort(descending=True)[1:].tolist():
        problem.del_component("wins_by")
        problem.wins_by = pyo.Objective(expr=outputs[0, other] - outputs[0, label], sense=pyo.maximize)
        solver = pyo.SolverFactory("appsi_highs")
        solver.solve(problem)
        if pyo.value(problem.wins_by) > MARGIN:
            pixels = [pyo.value(problem.network.inputs[(0, *index)]) for index in np.ndindex(*image.shape)]
            found = torch.tensor(pixels).reshape(image.shape)
            confirmed = cnn(found[None])[0]
            if confirmed[other] <= confirmed[label]:
                raise RuntimeError(f"the CNN does not confirm that the image is a {other}, and no {label}")
            return Answer(image[0].numpy(), label, found[0].numpy(), other, time.perf_counter() - start)
    return Answer(image[0].numpy(), label, None, None, time.perf_counter() - start)


def table(answers: Sequence[Answer], eps: float) -> Table:
    """One line per image."""
    result = Table("digit", "answer", title=f"Each pixel changed by at most {eps:g}", box=SIMPLE_HEAD)
    result.add_column("s", justify="right")
    for answer in answers:
        text = "proved: it stays that" if answer.found is None else f"becomes a {answer.other}, as the CNN confirms"
        result.add_row(str(answer.label), text, f"{answer.seconds:.1f}")
    return result


def draw(answers: Sequence[Answer], path: Path) -> None:
    """Each image that has a counterexample, above it."""
    wrong = [answer for answer in answers if answer.found is not None]
    figure = Figure(figsize=(1.4 * max(len(wrong), 1), 3.2))
    for number, answer in enumerate(wrong):
        for row, (pixels, title) in enumerate(((answer.image, answer.label), (answer.found, answer.other))):
            axes = figure.add_subplot(2, len(wrong), row * len(wrong) + number + 1)
            axes.imshow(pixels, cmap="gray_r", vmin=0, vmax=1)
            axes.set_title(str(title), fontsize=10)
            axes.set_axis_off()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    logging.getLogger("pyomo").setLevel(logging.ERROR)
    main()
