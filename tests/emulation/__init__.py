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
# Those of the library, so that one that is missing there is missing here.
CMAKE = (CSRC / "cuda" / "CMakeLists.txt").read_text()
SOURCES = [
    (CSRC / "cuda" / name).resolve() for name in CMAKE.partition("(conv2affine_cuda SHARED")[2].split(")")[0].split()
]
# Two units of compilation, as torch's headers are most of the work; the kernels see none of them.
UNITS = {
    "kernels": [source for source in SOURCES if source.suffix == ".cu"],
    "host": [source for source in SOURCES if source.suffix == ".cpp"],
}
INCLUDES = [f"-I{HEADERS}", f"-I{CSRC}"]
TORCH_INCLUDES = [f"-isystem{TORCH}/include", f"-isystem{TORCH}/include/torch/csrc/api/include"]
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

        def compile(name: str) -> Path:
            target = Path(directory, f"{name}.o")
            includes = INCLUDES + (TORCH_INCLUDES if name == "host" else [])
            text = "".join(f'#include "{source}"\n' for source in UNITS[name])
            command = [compiler, *FLAGS, *includes, "-x", "c++", "-c", "-", "-o", target]
            subprocess.run(command, input=text, text=True, check=True)
            return target

        objects = list(pool.map(compile, UNITS))
        linked = Path(directory, library.name)
        libraries = [f"-L{TORCH}/lib", "-ltorch_cpu", "-lc10", "-Wl,--no-undefined"]
        subprocess.run([compiler, *FLAGS, "-shared", *objects, *libraries, "-o", linked], check=True)
        return linked.rename(library)


def cuda(op: str, *arguments: object):
    """The result of an operator's CUDA kernel."""
    return getattr(torch.ops.conv2affine, op).default.redispatch(DispatchKeySet(DispatchKey.CUDA), *arguments)
