"""Builds the compiled part with CMake, once for each torch, and requires one of these."""

import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # not there in every build
from build_backend import torch_folders  # noqa: E402

TESTED_WITH = [(2, 13), (2, 14)]  # minor versions of torch, without gaps
TORCHES = {f"conv2affine._C_{minor.replace('.', '_')}": (minor, folder) for minor, folder in torch_folders().items()}


def tool(name: str) -> str | None:
    """The program from its PyPI package, which need not be on PATH; else the one on PATH."""
    try:
        scripts = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        scripts = []
    for script in scripts:
        if script.parent.name in ("bin", "Scripts") and script.stem == name:
            return str(script.locate())
    return shutil.which(name)


def run(*command: str) -> None:
    """Run a program; where it fails, its own message is the last, without a traceback of setuptools."""
    if code := subprocess.run(command).returncode:
        raise SystemExit(f"conv2affine is not built: {shlex.join(command[:3])} ... ended with {code}; see above")


class CMakeBuild(build_ext):
    """Configure, build, and install to where setuptools expects the extension."""

    def run(self) -> None:
        if not TORCHES:
            raise SystemExit("conv2affine is built for the torch that is there, and there is none: install torch first")
        super().run()

    def build_extension(self, ext: Extension) -> None:
        cmake = tool("cmake")
        if cmake is None:
            raise SystemExit("conv2affine is built with CMake: run `pip install cmake ninja`")
        minor, torch = TORCHES[ext.name]
        build = Path(self.build_temp).resolve() / f"torch-{minor}"
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if (ninja := tool("ninja")) else []
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "2")
        # --fresh: an isolated build runs in a new environment each time, and a cache would point into the old one.
        configure = ["--fresh", "-S", str(ROOT), "-B", str(build), *generator, f"-DTORCH_ROOT={torch}"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release"]
        configure += [f"-DCONV2AFFINE_CUDA={os.environ.get('CONV2AFFINE_CUDA', 'AUTO')}"]
        run(cmake, *configure)
        run(cmake, "--build", str(build), "--parallel", jobs)
        # In the source folder too: Python run there imports that one, whatever is installed.
        for prefix in (package.parent, ROOT):
            run(cmake, "--install", str(build), "--prefix", str(prefix))


def torch_requirement() -> str:
    """The minor versions of torch that there is a compiled part for; they must follow one another."""
    minors = sorted(tuple(map(int, minor.split("."))) for minor, _ in TORCHES.values())
    minors = minors or TESTED_WITH  # an sdist can be made without torch
    (major, first), (_, last) = minors[0], minors[-1]
    if minors != [(major, minor) for minor in range(first, last + 1)]:
        raise SystemExit(f"the torches to build for ({minors}) must be minor versions that follow one another")
    if not {*minors} <= {*TESTED_WITH}:
        found, tested = (" or ".join(f"{major}.{minor}" for major, minor in each) for each in (minors, TESTED_WITH))
        raise SystemExit(f"torch {found} must be one that conv2affine is tested with: install torch {tested}")
    return f"torch>={major}.{first},<{major}.{last + 1}"


setup(
    ext_modules=[Extension(name, sources=[]) for name in TORCHES],
    cmdclass={"build_ext": CMakeBuild},
    # SciPy 1.12 is the first whose csr_array keeps the index type that it is given.
    install_requires=[torch_requirement(), "numpy", "psutil", "scipy>=1.12"],
)
