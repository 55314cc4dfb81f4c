"""Random small networks, 1-D to 3-D, for Hypothesis."""

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

CHANNELS = 2
CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MAX_POOL, AVG_POOL = (F.max_pool1d, F.max_pool2d, F.max_pool3d), (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
RESIZE = ("linear", "bilinear", "trilinear")
# Functions of one value, of two values, and layers; all keep the shape.
UNARY = {
    "relu": lambda x, d: F.relu(x),
    "leaky_relu": lambda x, d: F.leaky_relu(x, 0.3),
    "clip": lambda x, d: x.clamp(-0.5, 0.7),
    "abs": lambda x, d: x.abs(),
    "max_pool": lambda x, d: MAX_POOL[d - 1](x, 3, 1, 1),
    "avg_pool": lambda x, d: AVG_POOL[d - 1](x, 3, 1, 1, count_include_pad=False),
    "flip": lambda x, d: x.flip(2),
    "roll": lambda x, d: x.roll(1, 1),
    "mean": lambda x, d: x - x.mean(1, keepdim=True),
    "scale": lambda x, d: 0.5 - 2 * x,
    "resize": lambda x, d: F.interpolate(F.interpolate(x, scale_factor=2, mode=RESIZE[d - 1]), x.shape[2:]),
}
BINARY = {
    "add": lambda x, y, d: x + y,
    "sub": lambda x, y, d: x - 0.5 * y,
    "cat": lambda x, y, d: torch.cat([x, y], 1)[:, 1:3],
    "maximum": lambda x, y, d: torch.maximum(x, y),
    "minimum": lambda x, y, d: torch.minimum(y, x),
}
LAYERS = {
    "conv": lambda d: CONV[d - 1](CHANNELS, CHANNELS, 3, padding=1),
    "depthwise": lambda d: CONV[d - 1](CHANNELS, CHANNELS, 3, padding=2, dilation=2, groups=CHANNELS),
    "pointwise": lambda d: CONV[d - 1](CHANNELS, CHANNELS, 1, bias=False),
    "circular": lambda d: CONV[d - 1](CHANNELS, CHANNELS, 3, padding=1, padding_mode="circular"),
    "strided": lambda d: nn.Sequential(CONV[d - 1](CHANNELS, 3, 2, 2, 1), TRANSPOSED[d - 1](3, CHANNELS, 3, 2, 1)),
    "norm": lambda d: NORM[d - 1](CHANNELS),
}
PIECEWISE = [*UNARY, *BINARY, *LAYERS]
KEPT = {
    "sigmoid": lambda x, d: torch.sigmoid(x),
    "softmax": lambda x, d: x.softmax(1),
    "square": lambda x, d: x * x,
}
Step = tuple[str, int, int]


class Network(nn.Module):
    """Steps one after the other, each of values before it; the result is the sum of the values that no step uses."""

    def __init__(self, axes: int, steps: list[Step]) -> None:
        super().__init__()
        self.axes, self.steps = axes, steps
        torch.manual_seed(0)
        layers = {str(n): LAYERS[name](axes) for n, (name, *_) in enumerate(steps) if name in LAYERS}
        self.layers = nn.ModuleDict(layers).double().eval()
        for norm in self.modules():
            if isinstance(norm, NORM):
                nn.init.uniform_(norm.running_var, 0.5, 2)
                nn.init.normal_(norm.running_mean)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, used = [x], set()
        for number, (name, first, second) in enumerate(self.steps):
            first, second = first % len(values), second % len(values)
            used |= {first, second} if name in BINARY else {first}
            if name in LAYERS:
                y = self.layers[str(number)](values[first])[(..., *(slice(size) for size in x.shape[2:]))]
            elif name in BINARY:
                y = BINARY[name](values[first], values[second], self.axes)
            else:
                y = {**UNARY, **KEPT}[name](values[first], self.axes)
            values.append(y)
        return sum(value for number, value in enumerate(values) if number not in used)


def networks(names: list[str]) -> st.SearchStrategy[tuple[int, list[Step]]]:
    numbers = st.integers(0, 20)
    return st.tuples(
        st.integers(1, 3), st.lists(st.tuples(st.sampled_from(names), numbers, numbers), min_size=1, max_size=8)
    )


def example_input(axes: int) -> torch.Tensor:
    size = {1: (7,), 2: (5, 3), 3: (3, 3, 3)}[axes]
    return torch.randn(3, CHANNELS, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
