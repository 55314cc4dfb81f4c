"""The installed package: what it says about itself, and what it refuses to be loaded with."""

import inspect
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch

import conv2affine
from conv2affine.operators.extension import _C

SUFFIX = Path(_C.__file__).name.partition(".")[2]  # of this Python
FILES = Path(_C.__file__).parent.glob(f"_C_*.{SUFFIX}")
BUILT_FOR = ", ".join(sorted(path.name[3:].partition(".")[0].replace("_", ".") for path in FILES))
NONE = f"import sys; sys.modules['{_C.__name__}'] = None"


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_build_info():
    info = _C.build_info()
    assert info["torch"].split(".")[:2] == torch.__version__.split(".")[:2]
    assert info["compiler"].split()[0] in ("GNU", "Clang", "AppleClang")
    assert info["openmp"] is True
    assert info["cuda"] is False or torch.version.cuda


def test_cuda_kernels_are_there_or_refused():
    """In a process of its own: the emulation in tests registers CUDA kernels as well."""
    result = run(
        """
import torch
from conv2affine.operators import extension
from conv2affine.operators.extension import _C
OPS = ["dense", "csr", "coo", "values", "bias", "dense_adjoint", "sparse_adjoint"]
has = [torch._C._dispatch_has_kernel_for_dispatch_key(f"conv2affine::{op}", "CUDA") for op in OPS]
assert has == [torch.version.cuda is not None] * len(OPS), has
if not _C.build_info()["cuda"]:
    extension._refuse_cuda()
cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
torch.ops.conv2affine.dense.default.redispatch(cuda, torch.ones(1, 1, 1, 1), [1, 1, 1, 0, 1], "zeros", False, 0, 1)
"""
    )
    assert result.returncode == 1
    if _C.build_info()["cuda"]:
        assert "non-CUDA DeviceType: cpu" in result.stderr  # the guard's: no memory of the CPU is touched
    else:
        assert "NotImplementedError: this conv2affine was built without CUDA: rebuild it with" in result.stderr


def test_is_typed_and_versioned():
    files = resources.files(conv2affine)
    assert files.joinpath("py.typed").is_file()
    assert files.joinpath("_C.pyi").is_file()
    assert conv2affine.__version__ == "0.3.0"


def test_dir_shows_what_users_call():
    assert dir(conv2affine) == sorted([*conv2affine.__all__, "__version__", "distributed", "files", "onnx"])
    assert {"to_linear_network", "to_mlp"} <= {*conv2affine.__all__}


PUBLIC = [getattr(conv2affine, name) for name in conv2affine.__all__]
FUNCTIONS = [public for public in PUBLIC if inspect.isfunction(public)]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_docstring_is_complete(function):
    doc = inspect.getdoc(function)
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert f"\n{section}\n" in doc
    for name in inspect.signature(function).parameters:
        assert f"\n    {name}: " in doc


@pytest.mark.parametrize(
    ("before", "version", "found"),
    [
        ("import torch; torch.__version__ = '2.99.1'", "2.99.1", f"one for torch {BUILT_FOR}"),
        (NONE, torch.__version__, f"one for torch {BUILT_FOR}"),
        (f"{NONE}; import sysconfig; sysconfig.get_config_vars()['EXT_SUFFIX'] = '.no.so'", torch.__version__, "none"),
    ],
    ids=["another torch", "a file that does not load", "files of another Python"],
)
def test_no_compiled_part_for_this_torch(before, version, found):
    result = run(f"{before}; import conv2affine")
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    package = Path(conv2affine.__file__).parent
    assert error.startswith(f"ImportError: {package} has no compiled part that loads with torch {version} (")
    assert f"for this Python it has {found};" in error
    assert "build it in the source tree with: pip install . (" in error


def test_gil_is_released_while_it_works():
    """Another Python thread counts while a call fills a matrix; nothing else of the main thread lets it run."""
    result = run(
        """
import operator, threading, torch, conv2affine
from functools import partial
weight = torch.ones(1, 32, 32, 9)
dense = partial(torch.ops.conv2affine.dense.default._op, weight, [196, 196, 1, 4, 1], "zeros", False, 0, 32 * 196)
begun, ended, ticks, stop = [], [], [], threading.Event()
def tick():
    while not stop.is_set():
        if len(begun) > len(ended):
            ticks.append(1)
            stop.set()
threading.Thread(target=tick).start()
for _ in range(1000):
    if stop.is_set():
        break
    list(map(operator.methodcaller("__call__"), [partial(begun.append, 1), dense, partial(ended.append, 1)]))
stop.set()
assert ticks
"""
    )
    assert result.returncode == 0, result.stderr


def test_subpackages_are_imported_on_first_use():
    """In a process of its own, which has imported nothing else."""
    result = run(
        """
import sys, conv2affine
assert not {"onnx", "h5py", "scipy", "torch.distributed.tensor"} & set(sys.modules)
assert conv2affine.onnx.convert and conv2affine.files.save_csr and conv2affine.distributed.to_dtensor
"""
    )
    assert result.returncode == 0, result.stderr
