"""Loading of the compiled part, and the refusal of one that was built for another torch."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import NoReturn

import torch

__all__ = ["_C"]


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
        f"{Path(__file__).parents[1]} has no compiled part that loads ({error}); build it in the source tree with: "
        "pip install --no-build-isolation . (or run in a folder without the source, if conv2affine is installed)"
    ) from error
_check_torch(_C.build_info()["torch"])


def _no_cuda(*_: object) -> NoReturn:
    raise NotImplementedError(
        "this conv2affine was built without CUDA: rebuild it with CONV2AFFINE_CUDA=ON in the environment, "
        "or move the layer to the CPU with .cpu()"
    )


def _refuse_cuda() -> None:
    for name in ("dense", "csr", "coo", "values", "bias", "dense_adjoint", "sparse_adjoint"):
        torch.library.impl(f"conv2affine::{name}", "CUDA", _no_cuda)


if _C.build_info()["cuda"] and torch.version.cuda:
    torch.ops.load_library(Path(_C.__file__).with_name("libconv2affine_cuda.so"))  # type: ignore[no-untyped-call]
elif torch.version.cuda:
    _refuse_cuda()
