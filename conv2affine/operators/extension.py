"""Loading of the compiled part: the one that was built for the torch that is imported."""

from __future__ import annotations

import sysconfig
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch

if TYPE_CHECKING:
    from conv2affine import _C

__all__ = ["_C"]

PACKAGE = Path(__file__).parents[1]
# PyTorch's C++ interface may change with its minor version, and a binary for another one may load and misbehave: so
# each has its own, with the version in its name.
MINOR = "_".join(torch.__version__.split(".")[:2])

try:
    _C = import_module(f"conv2affine._C_{MINOR}")
except ImportError as error:
    files = PACKAGE.glob(f"_C_*{sysconfig.get_config_var('EXT_SUFFIX')}")  # not those of other Pythons
    others = sorted(path.name.split(".")[0][3:].replace("_", ".") for path in files)
    found = f"one for torch {', '.join(others)}" if others else "none"
    raise ImportError(
        f"{PACKAGE} has no compiled part that loads with torch {torch.__version__} ({error}); for this Python it has "
        f"{found}; build it in the source tree with: pip install . "
        "(or install such a torch, or run in a folder without the source, if conv2affine is installed)"
    ) from error


def _no_cuda(*_: object) -> NoReturn:
    raise NotImplementedError(
        "this conv2affine was built without CUDA: rebuild it with CONV2AFFINE_CUDA=ON in the environment, "
        "or move the layer to the CPU with .cpu()"
    )


def _refuse_cuda() -> None:
    for name in ("dense", "csr", "coo", "values", "bias", "dense_adjoint", "sparse_adjoint"):
        torch.library.impl(f"conv2affine::{name}", "CUDA", _no_cuda)


if _C.build_info()["cuda"] and torch.version.cuda:
    torch.ops.load_library(PACKAGE / f"libconv2affine_cuda_{MINOR}.so")  # type: ignore[no-untyped-call]
elif torch.version.cuda:
    _refuse_cuda()
