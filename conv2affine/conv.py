"""The way back: from a linear layer to the convolution layer that it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from conv2affine.convolution.arguments import LAYERS, Conv
from conv2affine.convolution.geometry import Geometry
from conv2affine.projection import check_matrix, from_matrix
from conv2affine.sparse_linear import SparseLinear

__all__ = ["to_conv"]


def to_conv(linear: nn.Linear, geometry: Geometry, *, tolerance: float | None = None) -> Conv:
    """The convolution layer that a linear layer equals: the inverse of `to_linear`.

        conv(x).flatten(1) == linear(x.flatten(1))

    The weight is that of `from_matrix`; the bias is the mean over the positions of each channel.

    Args:
        linear: An `nn.Linear` or `SparseLinear`; its weight, dense or sparse, is read once, as `linear.weight`.
        geometry: The convolution that it should equal, for instance `Geometry.from_layer(conv, input_size)`.
        tolerance: How far the convolution may be from the linear layer: the residual of the weight relative to its
            Frobenius norm, and that of the bias relative to its norm. Default: 10 times the machine epsilon of the
            weight's dtype (float32: 1.2e-6), which is what rounding explains. With `float("inf")` the result is the
            nearest convolution, however far.

    Returns:
        One of PyTorch's six layers, with parameters of its own, which have the dtype and device of the linear layer's
        and require gradients where those do; in its training mode; without a bias where it has none.
        `weight[co, ci, *k]`, or `[ci, co, *k]` if transposed, is the weight of a tap. No random numbers are drawn.

    Raises:
        TypeError: If `linear` is not an `nn.Linear`, or overrides `forward`; as `from_matrix`.
        ValueError: If the linear layer is not such a convolution, if its shape is not that of the geometry, if no
            layer has such a padding, or if `tolerance` is no number, or < 0. The message has the numbers.

    Example:
        >>> from conv2affine import to_linear
        >>> conv = torch.nn.Conv2d(3, 8, kernel_size=3, stride=2, padding=1)
        >>> geometry = Geometry.from_layer(conv, (9, 9))
        >>> back = to_conv(to_linear(conv, (9, 9)), geometry)
        >>> back
        Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
        >>> torch.equal(back.weight, conv.weight) and torch.equal(back.bias, conv.bias)
        True
    """
    _check_linear(linear)
    with torch.enable_grad():  # without it, a parametrised weight would not require gradients
        matrix, bias = linear.weight, linear.bias
    check_matrix("linear.weight", matrix, geometry)
    if tolerance is None:
        tolerance = 10 * torch.finfo(matrix.dtype).eps
    if not isinstance(tolerance, int | float) or not tolerance >= 0:
        raise ValueError(f"tolerance ({tolerance!r}) must be a number that is at least 0, or None")
    conv = _layer_without_data(geometry, bias is not None)
    weight, residual = from_matrix(matrix, geometry)
    _check_residual("linear.weight is no convolution of this geometry", residual, matrix, tolerance)
    conv.weight = nn.Parameter(weight, matrix.requires_grad)
    if bias is not None:
        mean, residual = _channel_means(bias.detach(), geometry)
        _check_residual("linear.bias is not the same at all positions of a channel", residual, bias, tolerance)
        conv.bias = nn.Parameter(mean, bias.requires_grad)
    return conv.train(linear.training)


def _channel_means(bias: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """The nearest bias with one element per channel, and the norm of the difference."""
    positions = bias.to(torch.promote_types(bias.dtype, torch.float64)).view(geometry.out_channels, -1)  # (co, o)
    first = positions[:, :1]
    mean = (first + (positions - first).mean(1, keepdim=True)).to(bias.dtype)  # exact where all of them are equal
    return mean.flatten(), torch.linalg.vector_norm(positions - mean)


def _layer_without_data(geometry: Geometry, bias: bool) -> Conv:
    """The layer without parameters: on "meta" no memory is allocated, and no random numbers are drawn."""
    sizes = (geometry.in_channels, geometry.out_channels, geometry.kernel_size)
    options = {"stride": geometry.stride, "dilation": geometry.dilation, "groups": geometry.groups, "bias": bias}
    options.update(padding=_layer_padding(geometry), padding_mode=geometry.padding_mode, device="meta")
    if geometry.transposed:
        options.update(output_padding=geometry.output_padding)
    layer: type[Conv] = LAYERS[3 * geometry.transposed + len(geometry.kernel_size) - 1]
    return layer(*sizes, **options)  # type: ignore[arg-type]


def _layer_padding(geometry: Geometry) -> str | tuple[int, ...]:
    """The padding as PyTorch's constructors take it."""
    if all(left == right for left, right in geometry.padding):
        return tuple(left for left, _ in geometry.padding)
    reaches = [
        dilation * (kernel - 1) for dilation, kernel in zip(geometry.dilation, geometry.kernel_size, strict=True)
    ]
    same = tuple((reach // 2, reach - reach // 2) for reach in reaches)
    if geometry.padding != same or geometry.transposed or set(geometry.stride) != {1}:
        raise ValueError(
            f"geometry has padding {geometry.padding}, but PyTorch's layers pad both sides alike, except for "
            f"padding='same', here {same} with stride 1; use from_matrix, and F.pad before F.conv{len(same)}d"
        )
    return "same"


def _check_linear(linear: object) -> None:
    """Refuse a layer that need not compute x @ weight.T + bias."""
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"linear must be an nn.Linear, got {type(linear).__name__}; from_matrix takes any matrix")
    known = (nn.Linear.forward, SparseLinear.forward)
    if type(linear).forward not in known or "forward" in vars(linear):
        raise TypeError(
            f"linear ({type(linear).__name__}) overrides forward, so that its output need not be that of nn.Linear; "
            "pass a plain nn.Linear with the weight and bias that it applies"
        )
    if any(is_lazy(parameter) for parameter in vars(linear)["_parameters"].values()):
        raise ValueError(f"linear ({type(linear).__name__}) is lazy and has no weight; run a batch through it first")


def _check_residual(claim: str, residual: Tensor, tensor: Tensor, tolerance: float) -> None:
    """Refuse what is farther from the convolution than `tolerance` allows."""
    if residual == 0:
        return
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_sparse(layout=torch.sparse_coo).coalesce().values()
    norm = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float64))
    if not residual <= tolerance * norm:  # NaN is refused, too
        raise ValueError(
            f"{claim}: the nearest one is at a distance of {residual:.3g}, which is {residual / norm:.3g} of its norm "
            f"({norm:.3g}), and tolerance is {tolerance:.3g}; check the geometry, or raise tolerance to accept it"
        )
