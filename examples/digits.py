"""A CNN for handwritten digits, turned into a network of linear layers that predicts the same."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import conv2affine

TIMES = "\N{MULTIPLICATION SIGN}"


def main() -> None:
    """Train, convert, compare, show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/demo"), help="for sparsity.png")
    output = parser.parse_args().output
    # A pipe has no width, and the default of 80 columns would wrap the table.
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)

    train_images, test_images, train_labels, test_labels = digits()
    start = time.perf_counter()
    cnn = train(build_cnn(), train_images, train_labels)
    console.print(f"Trained on {len(train_images)} digits in {time.perf_counter() - start:.1f} s.")

    with torch.no_grad():
        linear_network, conversions = convert(cnn, test_images)
        expected, logits = cnn(test_images), linear_network(test_images)
    console.print(table(conversions))

    accuracy = (expected.argmax(1) == test_labels).double().mean().item()
    differing = int((logits.argmax(1) != expected.argmax(1)).sum())
    worst = (logits - expected).abs().max().item()
    if differing:
        sys.exit(f"{differing} of {len(logits)} predictions differ, logits by up to {worst:.1e}")
    console.print(
        f"{len(test_images)} test images, {accuracy:.1%} right: CNN and linear layers make "
        f"[bold]the same prediction on every one[/]; logits differ by at most {worst:.1e}."
    )

    compare_networks(cnn, test_images, console)

    output.mkdir(parents=True, exist_ok=True)
    draw(conversions, output / "sparsity.png")
    console.print(f"Picture of the matrices: {output / 'sparsity.png'}")


def compare_networks(cnn: nn.Sequential, images: Tensor, console: Console) -> None:
    """Convert the whole network in one call, in both ways, and compare every prediction."""
    net = conv2affine.to_linear_network(cnn, images[:1])
    mlp = conv2affine.to_mlp(cnn, images[:1])
    with torch.no_grad():
        expected = cnn(images).argmax(1)
        for name, converted in ("to_linear_network", net), ("to_mlp", mlp):
            differing = int((converted(images).argmax(1) != expected).sum())
            if differing:
                sys.exit(f"{name}: {differing} of {len(images)} predictions differ")
    widths = [layer.out_features for layer in mlp if isinstance(layer, nn.Linear)]
    console.print(
        f"The whole network in one call: [bold]to_linear_network[/], {len(net.plan.layers)} linear layers with "
        f"{net.plan.nnz:,} entries;\n[bold]to_mlp[/], Linear and ReLU only, {' - '.join(map(str, widths))} units. Both "
        "make the same predictions too."
    )


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (N, 1, 8, 8) in [0, 1] to train and to test with, then their labels (N,)."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target)
    return tuple(train_test_split(images, labels, test_size=0.3, stratify=labels, random_state=0))


def build_cnn() -> nn.Sequential:
    """A small hourglass with one layer of each kind: depthwise, pointwise, strided, transposed, dilated."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", groups=4),
        nn.Conv2d(4, 4, 1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.LeakyReLU(0.1),
        nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(4, 8, 3, stride=2, padding=2, dilation=2, padding_mode="reflect"),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    )


def train(cnn: nn.Sequential, images: Tensor, labels: Tensor) -> nn.Sequential:
    """Plain Adam on cross-entropy."""
    epochs, batch = 30, 64
    optimizer = torch.optim.Adam(cnn.parameters())
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(batch):
            loss = nn.functional.cross_entropy(cnn(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return cnn.eval()


@dataclass
class Conversion:
    """One converted layer, and the facts for its row of the table."""

    conv: nn.Conv2d | nn.ConvTranspose2d
    fc: nn.Linear
    plan: conv2affine.Plan
    milliseconds: float
    worst_error: float


def convert(cnn: nn.Sequential, x: Tensor) -> tuple[nn.Sequential, list[Conversion]]:
    """The network of linear layers; `x` is passed through, for the input sizes and the comparison."""
    layers: list[nn.Module] = [nn.Flatten()]
    conversions = []
    for layer in cnn:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            conversions.append(convert_layer(layer, x))
            layers.append(conversions[-1].fc)
        else:
            layers.append(layer)
        x = layer(x)
    return nn.Sequential(*layers), conversions


def convert_layer(conv: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> Conversion:
    """Convert one layer, timed (best of 5), and compare it on the layer's real input."""
    input_size = x.shape[2:]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        fc = conv2affine.to_linear(conv, input_size)
        seconds.append(time.perf_counter() - start)
    error = (fc(x.flatten(1)) - conv(x).flatten(1)).abs().max().item()
    return Conversion(conv, fc, conv2affine.plan(conv, input_size), 1000 * min(seconds), error)


def name(conv: nn.Conv2d | nn.ConvTranspose2d) -> str:
    """The class and the channels, as in Conv2d 1→8."""
    return f"{type(conv).__name__} {conv.in_channels}→{conv.out_channels}"


def geometry(conv: nn.Conv2d | nn.ConvTranspose2d) -> str:
    """The kernel, and each option that is not the default."""
    options = [times(conv.kernel_size)]
    options += [f"stride {conv.stride[0]}"] * (conv.stride != (1, 1))
    options += [f"dilation {conv.dilation[0]}"] * (conv.dilation != (1, 1))
    options += [f"groups {conv.groups}"] * (conv.groups != 1)
    mode = f"{conv.padding_mode} ".removeprefix("zeros ")
    options += [f"{mode}padding {conv.padding[0]}"] * (conv.padding != (0, 0))
    return ", ".join(options)


def times(sizes: Iterable[int]) -> str:
    """Sizes with a times sign between them."""
    return TIMES.join(map(str, sizes))


def table(conversions: list[Conversion]) -> Table:
    """One line per layer."""
    result = Table("layer", "geometry", title="Every convolution as one matrix", box=SIMPLE_HEAD)
    for heading in ("matrix", "density", "ms", "worst error"):
        result.add_column(heading, justify="right")
    for c in conversions:
        result.add_row(
            name(c.conv),
            f"{geometry(c.conv)} @ {times(c.plan.geometry.input_size)}",
            times(c.fc.weight.shape),
            f"{c.plan.density:.1%}",
            f"{c.milliseconds:.3f}",
            f"{c.worst_error:.1e}",
        )
    return result


ENTRY = 2  # pixels per matrix entry, 3 in the file: integers, so that every entry is sharp
INK, FAINT, LINE, SHADE = "#1f2430", "#6b7280", "#d5d9e0", "#f0f2f6"
# Without the pale middle of the scale: a weight stands out from the zeros however small it is.
COLOURS = matplotlib.colormaps["RdBu_r"](np.r_[0:0.38:128j, 0.62:1:128j])
PAINT: dict[str, Any] = {"cmap": ListedColormap(COLOURS), "vmin": -1, "vmax": 1}


def draw(conversions: list[Conversion], path: Path) -> None:
    """The six matrices at one scale, and three of their kernels enlarged."""
    width, height = 1480, 1348
    figure = Figure((width / 100, height / 100), dpi=100, facecolor="white")
    page = figure.add_axes((0, 0, 1, 1))  # coordinates: pixels from the top left corner
    draw_header(page)

    corners = (40, 190), (292, 190), (928, 190), (40, 798), (612, 798), (928, 798)
    for number, (c, corner) in enumerate(zip(conversions, corners, strict=True), 1):
        draw_matrix(page, c, corner, number)
    for number, channels, scale, place, caption in (
        (2, (0, 0), 4, (622, 182), "wrapped padding fills the corners"),
        (4, (7, 3), 8, (40, 1182), "stride 2: one row down, two to the right"),
        (6, (7, 0), 8, (928, 1182), "dilation and stride 2: odd inputs are never read"),
    ):
        draw_kernel(page, conversions[number - 1], corners[number - 1], channels, scale, place)
        page.text(place[0], place[1] - 9, caption, size=10.5, color=INK)

    page.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    page.set_axis_off()
    figure.savefig(path, dpi=150)  # 1.5 times the resolution, for dense screens


def draw_header(page: Axes) -> None:
    """The title, and what rows, columns and colours mean."""
    title = "The convolutions of a small CNN, as matrices"
    meaning = "One row per output, one column per input. Lines part the channels, zeros are white."
    page.text(40, 48, title, size=20, color=INK, weight="bold")
    page.text(40, 78, meaning, size=11.5, color=FAINT)
    page.text(1180, 42, "weight / largest weight of the layer", size=10, color=FAINT)
    page.imshow(np.linspace(-1, 1, 256)[None], extent=(1180, 1440, 64, 52), **PAINT)
    for x, label, align in (1180, "-1", "left"), (1310, "0", "center"), (1440, "+1", "right"):
        page.text(x, 80, label, size=10, color=FAINT, ha=align)


def draw_matrix(page: Axes, c: Conversion, corner: tuple[int, int], number: int) -> None:
    """One matrix with its title, and lines between the channels."""
    rows, cols = c.fc.weight.shape
    left, top = corner
    right, bottom = left + ENTRY * cols, top + ENTRY * rows
    share = f"{times((rows, cols))}, {c.plan.density:.1%} non-zero"
    page.text(left, top - 51, f"{number}  {name(c.conv)}", size=13, color=INK, weight="bold")
    page.text(left, top - 31, geometry(c.conv), size=10.5, color=INK)
    page.text(left, top - 12, share, size=10.5, color=FAINT)

    outs = np.linspace(top, bottom, c.conv.out_channels + 1)
    ins = np.linspace(left, right, c.conv.in_channels + 1)
    page.hlines(outs, left, right, color=LINE, linewidth=0.7, zorder=0)
    page.vlines(ins, top, bottom, color=LINE, linewidth=0.7, zorder=0)
    extent = (left, right, bottom, top)
    page.imshow(weights(c), extent=extent, interpolation="nearest", **PAINT)


def draw_kernel(
    page: Axes,
    c: Conversion,
    corner: tuple[int, int],
    channels: tuple[int, int],
    scale: int,
    place: tuple[int, int],
) -> None:
    """The block of one pair of channels (co, ci), enlarged next to or below its matrix."""
    rows = c.fc.out_features // c.conv.out_channels
    cols = c.fc.in_features // c.conv.in_channels
    row, col = channels[0] * rows, channels[1] * cols
    block = weights(c)[row : row + rows, col : col + cols]

    origin = (corner[0] + ENTRY * col, corner[1] + ENTRY * row)
    small = Rectangle(origin, ENTRY * cols, ENTRY * rows, fill=False)
    around = (place[0] - 1, place[1] - 1)  # one pixel for the frame
    large = Rectangle(around, scale * cols + 2, scale * rows + 2, facecolor="white")
    _, upper_right, lower_right, lower_left = small.get_corners()
    far_upper_left, far_upper_right, _, far_lower_left = large.get_corners()
    if place[0] > origin[0] + small.get_width():
        ray = [upper_right, far_upper_left, far_lower_left, lower_right]
    else:
        ray = [lower_left, far_upper_left, far_upper_right, lower_right]
    page.add_patch(Polygon(ray, color=SHADE, zorder=-1))
    for frame in small, large:
        frame.set(edgecolor=INK, linewidth=0.9, zorder=1)
        page.add_patch(frame)
    x = np.linspace(place[0], place[0] + scale * cols, cols + 1)
    y = np.linspace(place[1], place[1] + scale * rows, rows + 1)
    page.pcolormesh(x, y, block, edgecolors="white", linewidth=0.3, zorder=2, **PAINT)


def weights(c: Conversion) -> Any:
    """The matrix over its largest weight, as an array without its zeros."""
    matrix = c.fc.weight.detach().numpy()
    return np.ma.masked_equal(matrix / np.abs(matrix).max(), 0)


if __name__ == "__main__":
    main()
