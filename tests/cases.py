"""The layers that all tests share: every class, every option, degenerate sizes, and random ones."""

import zlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from conv2affine import Geometry


@dataclass(frozen=True)
class Case:
    """A layer and an input size."""

    id: str
    layer: type[nn.Module]
    args: dict[str, Any]
    input_size: tuple[int, ...]

    def conv(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The layer, its weights random but the same each time."""
        conv = self.layer(**self.args, dtype=dtype)
        generator = torch.Generator().manual_seed(zlib.crc32(self.id.encode()))
        with torch.no_grad():
            for parameter in conv.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
        return conv


def case(id: str, layer: type[nn.Module], input_size: Any, *args: int, **options: Any) -> Case:
    sizes = input_size if isinstance(input_size, tuple) else (input_size,)
    names = ("in_channels", "out_channels", "kernel_size")
    return Case(f"{layer.__name__}-{id}", layer, {**dict(zip(names, args, strict=False)), **options}, sizes)


C1, C2, C3 = nn.Conv1d, nn.Conv2d, nn.Conv3d
T1, T2, T3 = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
CIRCULAR, REFLECT, REPLICATE = ({"padding_mode": mode} for mode in ("circular", "reflect", "replicate"))

CASES = [
    # Plain, and one option at a time
    case("plain", C1, 7, 2, 3, 3),
    case("no-bias", C1, 7, 2, 3, 3, bias=False),
    case("stride", C1, 9, 2, 3, 3, stride=2),
    case("padding", C1, 5, 2, 3, 3, padding=2),
    case("dilation", C1, 9, 2, 3, 3, dilation=3),
    case("groups", C1, 6, 4, 6, 2, groups=2),
    case("plain", C2, (6, 7), 2, 5, 3, padding=1),
    case("no-bias", C2, (5, 4), 2, 3, 3, bias=False),
    case("rectangular", C2, (6, 9), 2, 3, (2, 4)),
    case("stride", C2, (7, 8), 2, 3, 3, stride=(2, 3)),
    case("padding", C2, (5, 4), 2, 3, (3, 4), padding=(1, 3)),
    case("dilation", C2, (8, 9), 2, 2, 3, dilation=(2, 3)),
    case("groups", C2, (5, 4), 6, 4, (3, 2), groups=2),
    case("depthwise", C2, (5, 6), 3, 3, 3, groups=3, padding=1),
    case("depthwise-multiplier", C2, (4, 5), 3, 6, 3, groups=3, padding=1, stride=2),
    case("pointwise", C2, (3, 4), 5, 4, 1),
    case("all-asymmetric", C2, (9, 7), 4, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 3), groups=2),
    case("plain", C3, (4, 3, 5), 1, 2, 2),
    case("all-asymmetric", C3, (5, 4, 3), 2, 2, (2, 3, 1), stride=(1, 2, 3), padding=(1, 0, 2), dilation=(2, 1, 1)),
    case("groups", C3, (3, 3, 3), 2, 4, 2, groups=2, padding=1),
    # Padding by name
    case("valid", C2, (5, 6), 1, 2, 3, padding="valid"),
    case("same", C1, 6, 2, 2, 3, padding="same"),
    case("same-even", C1, 6, 1, 2, 4, padding="same"),
    case("same-even-dilated", C2, (6, 7), 1, 2, (2, 4), padding="same", dilation=(3, 1)),
    case("same-kernel-larger-than-input", C1, 3, 1, 1, 8, padding="same"),
    case("same-even", C3, (3, 2, 4), 1, 1, (2, 3, 4), padding="same"),
    case("same-circular-even", C2, (5, 6), 2, 2, (4, 2), padding="same", **CIRCULAR),
    case("same-reflect-even", C2, (5, 6), 2, 2, (4, 2), padding="same", **REFLECT),
    case("same-replicate-dilated", C1, 5, 2, 2, 4, padding="same", dilation=3, **REPLICATE),
    # Padding modes
    case("circular", C1, 6, 2, 2, 3, padding=1, **CIRCULAR),
    case("circular-whole-input", C1, 4, 1, 2, 5, padding=4, **CIRCULAR),
    case("circular-stride", C2, (5, 6), 2, 2, 3, padding=(2, 3), stride=2, **CIRCULAR),
    case("circular-overlap", C2, (3, 2), 2, 2, (5, 4), padding=(2, 2), **CIRCULAR),
    case("circular-dilated-overlap", C1, 3, 1, 1, 3, padding=3, dilation=3, **CIRCULAR),
    case("circular-padding-beyond-kernel", C2, (3, 2), 1, 1, (3, 1), padding=(0, 2), **CIRCULAR),
    case("circular-groups", C2, (4, 3), 4, 2, 3, padding=1, groups=2, **CIRCULAR),
    case("circular", C3, (2, 3, 4), 1, 2, 3, padding=(1, 2, 1), **CIRCULAR),
    case("reflect", C1, 6, 2, 2, 3, padding=2, **REFLECT),
    case("reflect-to-the-end", C1, 4, 1, 2, 7, padding=3, **REFLECT),
    case("reflect-one-axis", C2, (5, 4), 2, 2, (3, 1), padding=(2, 0), **REFLECT),
    case("reflect-stride-dilation", C2, (6, 7), 1, 2, 3, padding=(3, 4), stride=(2, 3), dilation=2, **REFLECT),
    case("reflect", C3, (3, 2, 4), 1, 1, 3, padding=(2, 1, 3), **REFLECT),
    case("replicate", C1, 5, 2, 2, 3, padding=1, **REPLICATE),
    case("replicate-far", C1, 2, 1, 1, 3, padding=11, stride=2, **REPLICATE),
    case("replicate-single-input", C2, (1, 3), 1, 2, (3, 2), padding=(4, 1), **REPLICATE),
    case("replicate", C3, (2, 3, 2), 1, 2, 3, padding=(1, 2, 3), **REPLICATE),
    case("circular-no-padding", C2, (4, 4), 1, 1, 3, padding=0, **CIRCULAR),
    # Degenerate sizes
    case("single-element", C1, 1, 1, 1, 1),
    case("single-element", C3, (1, 1, 1), 2, 3, 1),
    case("kernel-is-input", C2, (4, 5), 2, 3, (4, 5)),
    case("kernel-is-padded-input", C2, (2, 3), 2, 3, (4, 5), padding=1),
    case("stride-beyond-kernel", C2, (11, 9), 1, 2, 2, stride=(5, 4)),
    case("stride-beyond-input", C1, 4, 1, 2, 2, stride=9),
    case("dilation-beyond-input", C1, 3, 1, 2, 3, dilation=5, padding=6),
    case("padding-beyond-kernel", C2, (2, 3), 1, 2, 2, padding=(4, 5)),
    case("no-tap-inside", C1, 1, 1, 1, 2, dilation=2, padding=1),
    case("trivial-leading-axis", C2, (1, 8), 2, 2, (1, 3)),
    case("trivial-last-axis", C2, (8, 1), 2, 2, (3, 1)),
    # Transposed
    case("plain", T1, 4, 2, 3, 3),
    case("no-bias", T1, 4, 2, 3, 3, bias=False),
    case("stride", T1, 4, 2, 3, 3, stride=2),
    case("stride-beyond-kernel", T1, 3, 1, 2, 2, stride=5),
    case("padding", T1, 5, 2, 2, 4, padding=2),
    case("padding-beyond-kernel", T1, 9, 1, 2, 2, padding=3),
    case("dilation", T1, 4, 1, 2, 3, dilation=4),
    case("stride-and-dilation", T1, 4, 1, 2, 3, stride=4, dilation=6, padding=3),
    case("output-padding", T1, 4, 2, 2, 3, stride=3, output_padding=2),
    case("output-padding-by-dilation", T1, 4, 1, 2, 2, stride=2, dilation=5, output_padding=4),
    case("single-element", T1, 1, 1, 1, 1),
    case("single-output", T1, 1, 2, 2, 3, padding=1),
    case("plain", T2, (3, 4), 2, 3, 3),
    case("upsampling", T2, (3, 4), 3, 2, 4, stride=2, padding=1),
    case("groups", T2, (3, 2), 4, 6, (2, 3), groups=2, stride=(2, 1)),
    case("depthwise-multiplier", T2, (3, 3), 2, 4, 3, groups=2, stride=2, padding=1, output_padding=1),
    case(
        "all-asymmetric",
        T2,
        (3, 4),
        2,
        4,
        (3, 2),
        stride=(3, 1),
        padding=(1, 0),
        dilation=(1, 3),
        output_padding=(2, 2),
        groups=2,
    ),
    case("plain", T3, (2, 3, 2), 1, 2, 2),
    case(
        "all-asymmetric", T3, (2, 1, 3), 2, 2, (2, 3, 1), stride=(1, 2, 3), padding=(0, 1, 0), output_padding=(0, 1, 2)
    ),
]


@st.composite
def layers(draw):
    """(class, constructor arguments, input size) of a layer that PyTorch accepts."""
    dims = draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    largest = {1: 9, 2: 5, 3: 3}[dims]

    def per_axis(strategy):
        return draw(st.tuples(*[strategy] * dims))

    groups = draw(st.integers(1, 3))
    input_size = per_axis(st.integers(1, largest))
    kernel_size = per_axis(st.integers(1, largest))
    dilation = per_axis(st.integers(1, 4))
    stride = per_axis(st.integers(1, 4))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    arguments = {
        "in_channels": groups * draw(st.integers(1, 2)),
        "out_channels": groups * draw(st.integers(1, 2)),
        "kernel_size": kernel_size,
        "dilation": dilation,
        "stride": stride,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if transposed:
        # The padding leaves an output of at least 1.
        full = [(i - 1) * s + r + 1 for i, s, r in zip(input_size, stride, reach, strict=True)]
        arguments["padding"] = tuple(draw(st.integers(0, (size - 1) // 2)) for size in full)
        arguments["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
        return (T1, T2, T3)[dims - 1], arguments, input_size
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    limits = [{"circular": i, "reflect": i - 1}.get(mode, r + 2) for i, r in zip(input_size, reach, strict=True)]
    padding = tuple(draw(st.integers(0, limit)) for limit in limits)
    # Enlarge the input until the kernel fits; a larger input keeps within the limit of its padding mode.
    input_size = tuple(max(i, r + 1 - 2 * p) for i, r, p in zip(input_size, reach, padding, strict=True))
    arguments.update(padding=padding, padding_mode=mode)
    same = draw(st.booleans())
    if same and all(r <= i for r, i in zip(reach, input_size, strict=True)):
        arguments.update(padding="same", stride=1)
    return (C1, C2, C3)[dims - 1], arguments, input_size


@st.composite
def geometries(draw):
    """A geometry of any kind: also what no layer has, uneven padding in each mode, and transposed."""
    layer, arguments, input_size = draw(layers())
    arguments = {name: value for name, value in arguments.items() if name != "bias"}
    geometry = Geometry.from_layer(layer(**arguments, device="meta"), input_size)
    sides = []
    for axis, (left, right) in enumerate(geometry.padding):
        # Taking from one side leaves an output and each mode's limit where the layer is transposed; else, it adds one.
        change = draw(st.integers(0, left)) if geometry.transposed else 0
        limit = {"circular": input_size[axis], "reflect": input_size[axis] - 1}.get(geometry.padding_mode, right + 3)
        more = 0 if geometry.transposed else draw(st.integers(0, max(0, limit - right)))
        sides.append((left - change, right + more))
    return replace(geometry, padding=tuple(sides))


def made(layer, arguments):
    """The layer, its weights random but the same each time."""
    torch.manual_seed(0)
    return layer(**arguments, dtype=torch.float64).requires_grad_(False)
