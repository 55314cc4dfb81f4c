"""The compiled operators, `torch.ops.conv2affine.*`: loading, shapes without data, and derivatives."""

from __future__ import annotations

import importlib.metadata
import re
from math import prod

import torch
from torch import Tensor
from torch.autograd import forward_ad

from conv2affine.geometry import Geometry

__all__ = ["axis_entries", "dense"]


def _check_torch(built_for: str) -> None:
    """Refuse a binary that was built for another minor version of torch: ATen has no stable ABI."""
    if torch.__version__.split(".")[:2] != built_for.split(".")[:2]:
        raise ImportError(
            f"conv2affine was built for torch {built_for} and this is torch {torch.__version__}; "
            "rebuild it with: pip install --force-reinstall --no-deps --no-build-isolation "
            "--no-cache-dir conv2affine (or the path of its source), or install that torch"
        )


def _check_installation() -> None:
    """The same from the package's metadata, before a binary that may not even load is touched."""
    try:
        requirements = importlib.metadata.requires("conv2affine") or []
    except importlib.metadata.PackageNotFoundError:
        return  # built in place by CMake, without an installation
    for requirement in requirements:
        if pin := re.match(r"torch==(\d+\.\d+)", requirement):
            _check_torch(pin[1])


_check_installation()
try:
    from conv2affine import _C
except ImportError as error:
    raise ImportError(
        f"conv2affine's compiled part could not be loaded ({error}); build it with: "
        "pip install --no-build-isolation . (in the source tree), and run outside of that tree"
    ) from error
_check_torch(_C.build_info()["torch"])


def dense(weight: Tensor, geometry: Geometry, row_start: int, row_stop: int) -> Tensor:
    """Rows [row_start, row_stop) of the matrix, strided; see csrc/dense.h."""
    if forward_ad.unpack_dual(weight).tangent is not None:  # type: ignore[no-untyped-call]
        _no_gradient()  # autograd would take the missing derivative for zero
    arguments = (geometry.canonical(weight), *geometry.operator_arguments(), row_start, row_stop)
    if weight.requires_grad or torch.compiler.is_compiling():
        matrix: Tensor = torch.ops.conv2affine.dense.default(*arguments)
        return matrix
    # Nothing to differentiate: without the step through autograd, which is written in Python, a small matrix takes
    # half of the time.
    with torch._C._AutoDispatchBelowAutograd():
        matrix = torch.ops.conv2affine.dense.default(*arguments)
    return matrix


def axis_entries(geometry: Geometry) -> list[int]:
    """For each axis, the number of pairs (o, i) that meet through at least one tap."""
    numbers, rule = geometry.operator_arguments()
    dims = len(geometry.kernel_size)
    axes = zip(*(numbers[i : i + dims] for i in range(0, 5 * dims, dims)), geometry.kernel_size, strict=True)
    return [_C.axis_entries(i, o, k, s, p, d, rule) for i, o, s, p, d, k in axes]


@torch.library.register_fake("conv2affine::dense")  # type: ignore[untyped-decorator]
def _dense_fake(weight: Tensor, geometry: list[int], rule: str, row_start: int, row_stop: int) -> Tensor:
    groups, _, in_group = weight.shape[:3]
    dims = weight.dim() - 3
    return weight.new_empty(row_stop - row_start, groups * in_group * prod(geometry[:dims]))


def _no_gradient(*_: object) -> None:
    raise NotImplementedError(
        "conv2affine 0.1 gives no gradients through the matrix; build it under torch.no_grad(), or from weight.detach()"
    )


torch.library.register_autograd("conv2affine::dense", _no_gradient)
