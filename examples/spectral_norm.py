"""Training a CNN whose convolutions keep a spectral norm of 1: that of the matrix, not of the kernel."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, relu
from torch.nn.utils import parametrizations

from conv2affine import to_matrix

LARGEST = 1.0  # the largest stretch allowed
STRENGTH = 10.0  # of the penalty; cross-entropy starts at 2.3
Penalty = Callable[[nn.Conv2d, int], Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train four times, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=25)
    epochs = parser.parse_args(arguments).epochs
    data = digits()
    power_iteration = PowerIteration()

    table = Table("spectral norm", title="norm of the matrix / of the reshaped kernel", box=SIMPLE_HEAD)
    for heading in ("right", "ms per step", "1→8 @8", "8→16, stride 2 @8", "16→16 @4", "product"):
        table.add_column(heading, justify="right")
    for name, prepare, norm in (
        ("no constraint", nn.Identity(), None),
        ("torch's spectral_norm", parametrizations.spectral_norm, None),
        ("penalty, matrix_norm", nn.Identity(), exact_norm),
        ("penalty, power iteration", nn.Identity(), power_iteration),
    ):
        cnn, sizes = build_cnn(prepare)
        accuracy, milliseconds = train(cnn, sizes, norm, epochs, *data)
        with torch.no_grad():
            norms = [exact_norm(conv, size).item() for conv, size in sizes.items()]
            kernels = [torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item() for conv in sizes]
        pairs = [f"{of_matrix:.2f} / {of_kernel:.2f}" for of_matrix, of_kernel in zip(norms, kernels, strict=True)]
        product = f"{torch.tensor(norms).prod():.2f}"
        table.add_row(name, f"{accuracy:.1%}", f"{milliseconds:.1f}", *pairs, product)
    # A pipe has no width, and the default of 80 columns would wrap the table.
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


def digits() -> list[Tensor]:
    """Images (N, 1, 8, 8) in [0, 1] to train and to test with, then their labels (N,)."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target)
    return train_test_split(images, labels, test_size=0.3, stratify=labels, random_state=0)


def build_cnn(prepare: Callable[[nn.Module], nn.Module]) -> tuple[nn.Sequential, dict[nn.Conv2d, int]]:
    """A CNN, each convolution passed through `prepare`; and its convolutions with the sizes of their inputs."""
    torch.manual_seed(0)
    convs = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3, padding=1)
    layers = [layer for conv in convs for layer in (prepare(conv), nn.ReLU())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 4 * 4, 10)), dict(zip(convs, (8, 8, 4), strict=True))


def exact_norm(conv: nn.Conv2d, size: int) -> Tensor:
    """How much a convolution stretches an input at most: the largest singular value of its matrix."""
    return torch.linalg.matrix_norm(to_matrix(conv, size), 2)


class PowerIteration:
    """The same, estimated by two products at each call; each call continues from the last estimate."""

    def __init__(self) -> None:
        self.inputs: dict[nn.Conv2d, Tensor] = {}  # the input that is stretched most

    def __call__(self, conv: nn.Conv2d, size: int) -> Tensor:
        matrix = to_matrix(conv, size)
        with torch.no_grad():
            x = self.inputs.get(conv, torch.ones(matrix.shape[1]))
            y = normalize(matrix @ x, dim=0)
            x = self.inputs[conv] = normalize(y @ matrix, dim=0)
        return y @ (matrix @ x)


def train(
    cnn: nn.Sequential,
    sizes: dict[nn.Conv2d, int],
    norm: Penalty | None,
    epochs: int,
    images: Tensor,
    test_images: Tensor,
    labels: Tensor,
    test_labels: Tensor,
) -> tuple[float, float]:
    """Adam on cross-entropy and, with `norm`, the penalty; returns the accuracy on the test images, and ms per step."""
    batches = [chosen for _ in range(epochs) for chosen in torch.randperm(len(images)).split(64)]
    optimizer = torch.optim.Adam(cnn.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=len(batches))
    start = time.perf_counter()
    for chosen in batches:
        loss = cross_entropy(cnn(images[chosen]), labels[chosen])
        if norm is not None:
            excess = [relu(norm(conv, size) - LARGEST) for conv, size in sizes.items()]
            loss = loss + STRENGTH * torch.stack(excess).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    milliseconds = 1000 * (time.perf_counter() - start) / len(batches)
    with torch.no_grad():
        right = cnn.eval()(test_images).argmax(1) == test_labels
    return right.double().mean().item(), milliseconds


if __name__ == "__main__":
    # More threads gain little for small layers, and cost much on a busy machine: two took 71 s there, one 19 s.
    torch.set_num_threads(1)
    main()
