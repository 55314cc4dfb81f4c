"""Random layers by seed: every class and option, in the sizes that PyTorch accepts."""

import random
from typing import Any

import torch
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


def random_layer(seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """(layer, input size); the same for the same seed."""
    draw = random.Random(seed)
    dims = draw.randint(1, 3)
    largest = {1: 40, 2: 9, 3: 4}[dims]

    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randint(low, high) for _ in range(dims))

    groups = draw.choice((1, 1, 2, 3))
    kernel_size, input_size = per_axis(1, largest), per_axis(1, largest)
    stride, dilation = per_axis(1, 4), per_axis(1, 4)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    arguments: dict[str, Any] = {
        "in_channels": groups * draw.randint(1, 3),
        "out_channels": groups * draw.randint(1, 3),
        "kernel_size": kernel_size,
        "stride": stride,
        "dilation": dilation,
        "groups": groups,
        "bias": draw.random() < 0.5,
        "dtype": draw.choice(DTYPES),
    }
    if draw.random() < 0.4:
        # Padding leaves an output of at least 1.
        full = [(i - 1) * s + r + 1 for i, s, r in zip(input_size, stride, reach, strict=True)]
        arguments["padding"] = tuple(draw.randint(0, (size - 1) // 2) for size in full)
        arguments["output_padding"] = tuple(
            draw.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)
        )
        layer = TRANSPOSED[dims - 1]
    else:
        mode = draw.choice(("zeros", "circular", "reflect", "replicate"))
        limits = [{"circular": i, "reflect": i - 1}.get(mode, r + 2) for i, r in zip(input_size, reach, strict=True)]
        arguments["padding"] = tuple(draw.randint(0, limit) for limit in limits)
        arguments["padding_mode"] = mode
        padded = zip(input_size, reach, arguments["padding"], strict=True)
        input_size = tuple(max(i, r + 1 - 2 * p) for i, r, p in padded)
        if draw.random() < 0.2 and all(r <= i for r, i in zip(reach, input_size, strict=True)):
            arguments.update(padding="same", stride=1)
        layer = CONVOLUTIONS[dims - 1]
    conv = layer(**arguments).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in conv.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return conv, input_size
