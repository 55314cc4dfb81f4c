"""The padding of a convolution: its forms, its modes, and the output size that it leaves."""

from __future__ import annotations

from typing import Any

from conv2affine.convolution.arguments import Padding, integers, is_iterable, shown

PADDING_MODES = ("zeros", "circular", "reflect", "replicate")
Numbers = tuple[int, ...]  # one per axis
Pairs = tuple[tuple[int, int], ...]  # (left, right) per axis


def padding_pairs(
    padding: Padding, kernel_size: Numbers, stride: Numbers, dilation: Numbers, transposed: bool
) -> Pairs:
    """Padding in any form as pairs."""
    dims = len(kernel_size)
    if isinstance(padding, str) and padding == "valid":
        padding = 0
    if isinstance(padding, str) and padding == "same":
        if transposed or any(step != 1 for step in stride):
            raise ValueError(
                f"padding='same' needs stride 1 and no transposition, got stride {stride}, "
                f"transposed={transposed}; give the padding in numbers"
            )
        totals = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
        # As in PyTorch, the right side gets one more of an odd total.
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, str):
        raise ValueError(f"padding ({padding!r}) must be numbers, 'same' or 'valid'")
    if is_iterable(padding):
        sides = tuple(padding)
        if any(map(is_iterable, sides)):
            pairs = [integers("padding", side, 2, at_least=0) for side in sides]
            if len(pairs) != dims:
                raise ValueError(f"padding ({shown(sides)}) must have one (left, right) pair per axis, that is {dims}")
            return tuple((left, right) for left, right in pairs)
        padding = sides
    return tuple((side, side) for side in integers("padding", padding, dims, at_least=0))


def check_padding_mode(
    mode: Any, input_size: Numbers, padding: Pairs, output_padding: Numbers, transposed: bool
) -> None:
    """Refuse an unknown padding mode, and padding that does not go with it."""
    if not isinstance(mode, str) or mode not in PADDING_MODES:
        raise ValueError(f"padding_mode ({shown(mode)}) must be one of {PADDING_MODES}")
    if transposed and mode != "zeros":
        raise ValueError(f"padding_mode ({mode!r}) must be 'zeros' in a transposed convolution")
    if not transposed and any(output_padding):
        raise ValueError(f"output_padding ({output_padding}) must be 0 unless the convolution is transposed")
    # F.pad wraps around at most once, and reflects at most once.
    spare = {"circular": 0, "reflect": 1}.get(mode)
    for axis, (size, sides) in enumerate(zip(input_size, padding, strict=True)):
        if spare is not None and max(sides) > size - spare:
            raise ValueError(
                f"padding {sides} of axis {axis} must be at most {size - spare} on each side with "
                f"padding_mode {mode!r} and input size {size}"
            )


def output_along(axis: int, size: int, kernel: int, step: int, sides: tuple[int, int], dilation: int, _: int) -> int:
    """The output size of a convolution along an axis, refused where it would be empty."""
    left, right = sides
    extent, padded = dilation * (kernel - 1) + 1, size + left + right
    if extent > padded:
        raise ValueError(
            f"the kernel of axis {axis} must not be larger than the padded input: it reaches over {extent} (kernel "
            f"size {kernel}, dilation {dilation}), the input over {padded} (input size {size}, padding {left} + "
            f"{right})"
        )
    return (padded - extent) // step + 1


def transposed_output_along(
    axis: int, size: int, kernel: int, step: int, sides: tuple[int, int], dilation: int, extra: int
) -> int:
    """Likewise of a transposed convolution."""
    left, right = sides
    if extra >= max(step, dilation):
        raise ValueError(
            f"output_padding ({extra}) of axis {axis} must be smaller than stride ({step}) or dilation ({dilation})"
        )
    output = (size - 1) * step - left - right + dilation * (kernel - 1) + 1 + extra
    if output < 1:
        raise ValueError(
            f"padding ({left} + {right}) of axis {axis} must leave an output, got size {output} from input size "
            f"{size}, stride {step}, kernel size {kernel}, dilation {dilation}, output_padding {extra}"
        )
    return output
