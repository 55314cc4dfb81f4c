"""The plot: time by size of the matrix."""

from __future__ import annotations

from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.measure import Result
from benchmarks.ours import FRESH, WARM
from benchmarks.report import BYTES, unit

INK, FAINT, LINE = "#1f2430", "#6b7280", "#d5d9e0"
OURS: dict[str, Any] = {"color": "#1257c0", "linewidth": 2.4, "zorder": 4}
FLOORS: dict[str, dict[str, Any]] = {
    FRESH: {"color": FAINT, "linewidth": 1.6, "linestyle": (0, (5, 2)), "zorder": 3},
    WARM: {"color": FAINT, "linewidth": 1.6, "linestyle": (0, (1, 1.2)), "zorder": 3},
}
PEERS = {"conv(eye)": "#c2571a", "unfold + scatter": "#8a3ffc", "scipy.sparse.kron, toarray": "#00796b"}
OTHER = "#b0275f"
LABELS = {
    "conv2affine.to_matrix": "conv2affine",
    FRESH: "torch.zeros (fresh memory)",
    WARM: "zero_() (warm memory)",
    "scipy.sparse.kron, toarray": "scipy.sparse.kron",
}
SECONDS = ("µs", "ms", "s")
Curves = dict[str, list[Result]]


def draw(results: list[Result]) -> Figure:
    """Time against bytes."""
    figure, axes = page(
        "Time to build the dense matrix of a convolution",
        f"Conv2d(8, 8, 3, padding=1) at growing input size, float32, {results[0].threads} threads",
    )
    axes.set(xscale="log", yscale="log", xlabel="size of the matrix")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: unit(x, BYTES)))
    draw_curves(axes, curves([r for r in results if r.seconds]))
    return figure


def curves(results: list[Result]) -> Curves:
    """Points by contender."""
    names = dict.fromkeys(r.contender for r in results)
    return {name: [r for r in results if r.contender == name] for name in names}


def page(title: str, subtitle: str) -> tuple[Figure, Axes]:
    """A figure with its headline and bare axes, with room for labels on the right."""
    width, height = 9, 5.4
    figure = Figure((width, height), facecolor="white")
    figure.text(0.28 / width, 1 - 0.34 / height, title, size=14, color=INK, weight="bold", va="center")
    figure.text(0.28 / width, 1 - 0.64 / height, subtitle, size=10, color=FAINT, va="center")
    left, right, bottom, top = 0.8, 2.15, 0.62, 0.95  # inches
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.grid(color=LINE, linewidth=0.6)
    axes.tick_params(colors=FAINT, length=0, labelsize=9)
    axes.xaxis.label.set(color=FAINT, size=10)
    return figure, axes


def draw_curves(axes: Axes, all_curves: Curves) -> None:
    """The median of each point, its range from the fastest to the slowest round, and names at the ends."""
    ends = []
    for name, points in all_curves.items():
        kind = points[0].kind
        peer = {"color": PEERS.get(name, OTHER), "linewidth": 1.5}
        style = OURS if kind == "ours" else FLOORS.get(name, peer)
        points = sorted(points, key=lambda r: r.bytes)
        xs, ys = [r.bytes for r in points], [r.median for r in points]
        axes.plot(xs, ys, marker="o", markersize=3.5 if kind != "floor" else 0, **style)
        lows, highs = ([extreme(r.seconds) for r in points] for extreme in (min, max))
        axes.fill_between(xs, lows, highs, color=style["color"], alpha=0.1, linewidth=0)
        ends.append((xs[-1], ys[-1], LABELS.get(name, name), style["color"], "bold" if kind == "ours" else "normal"))
    for axis in axes.xaxis, axes.yaxis:
        axis.set_major_locator(LogLocator(10, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: unit(1e6 * y, SECONDS)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    label_ends(axes, ends)


def label_ends(axes: Axes, ends: list[tuple[float, Any, str, str, str]]) -> None:
    """Names beside the last points, pushed apart where they would touch."""
    last = max(x for x, *_ in ends)
    style: dict[str, Any] = {"textcoords": "offset points", "size": 9.5, "annotation_clip": False}
    for x, y, name, colour, _ in ends:
        if x < last:  # it gave up earlier: its name goes to its last point
            axes.annotate(name, (x, y), (0, 7), color=colour, ha="right", **style)
    ends = sorted((end for end in ends if end[0] == last), key=lambda end: end[1])
    points = 72 / axes.get_figure().dpi  # a pixel
    heights = [points * axes.transData.transform((x, y))[1] for x, y, *_ in ends]
    for (x, y, name, colour, weight), height, place in zip(ends, heights, spread(heights, 14), strict=True):
        axes.annotate(name, (x, y), (9, place - height), color=colour, weight=weight, va="center", **style)


def spread(heights: list[float], spacing: float) -> list[float]:
    """The nearest places, in ascending order, with that spacing: neighbours that touch are centred as one block."""
    blocks: list[list[float]] = []
    for number, height in enumerate(heights):
        blocks.append([height - number * spacing])
        while len(blocks) > 1 and mean(blocks[-2]) > mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    places = [mean(block) for block in blocks for _ in block]
    return [place + number * spacing for number, place in enumerate(places)]
