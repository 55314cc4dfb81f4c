"""The CUDA backend on the CPU: csrc/cuda compiled, unmodified, against the headers in this directory."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch._C import DispatchKey, DispatchKeySet

ROOT = Path(__file__).resolve().parents[2]
CSRC, HEADERS, TORCH = ROOT / "csrc", ROOT / "tests" / "emulation", Path(torch.__file__).parent
SOURCES = [
    *sorted(CSRC.glob("cuda/*.c*")),
    *(CSRC / name for name in ("convolution.cpp", "regions.cpp", "rows.cpp", "storage.cpp", "sums.cpp", "taps.cpp")),
]
INCLUDES = [f"-I{HEADERS}", f"-I{CSRC}", f"-isystem{TORCH}/include", f"-isystem{TORCH}/include/torch/csrc/api/include"]
# -Wconversion: an index that is cut to 32 bits must say so. More flags, a sanitizer's, come from the environment.
FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Werror"]
FLAGS += os.environ.get("CONV2AFFINE_EMULATION_FLAGS", "").split()


def build() -> Path:
    """The library, made anew where a source or a header has changed."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("the CUDA kernels are emulated with g++, and there is none")
    digest = hashlib.sha256(repr((compiler, FLAGS, torch.__version__)).encode())
    for source in sorted([*CSRC.rglob("*.*"), *HEADERS.rglob("*.h")]):
        digest.update(source.read_bytes())
    library = ROOT / "build" / f"emulation-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    library.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as directory, ThreadPoolExecutor(2) as pool:

        def compile(source: Path) -> Path:
            target = Path(directory, f"{source.name}.o")
            subprocess.run([compiler, *FLAGS, *INCLUDES, "-x", "c++", "-c", source, "-o", target], check=True)
            return target

        objects = list(pool.map(compile, SOURCES))
        linked = Path(directory, library.name)
        libraries = [f"-L{TORCH}/lib", "-ltorch_cpu", "-lc10"]
        subprocess.run([compiler, *FLAGS, "-shared", *objects, *libraries, "-o", linked], check=True)
        return linked.rename(library)


def cuda(op: str, *arguments: object):
    """The result of an operator's CUDA kernel."""
    return getattr(torch.ops.conv2affine, op).default.redispatch(DispatchKeySet(DispatchKey.CUDA), *arguments)
