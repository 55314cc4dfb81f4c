"""The build backend: setuptools', but it builds for the torch that is there.

pip builds in an environment of its own. A torch there takes gigabytes, and may not be the one that conv2affine will run
with, of which the compiled part needs only the headers and libraries.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  # the hooks that are not replaced below

DEFAULT_TORCH = "torch==2.13.0"
FIND_TORCH = """
from importlib.util import find_spec
spec = find_spec("torch")
print(*spec.submodule_search_locations if spec else (), sep="\\n", end="")
"""


def torch_folders() -> dict[str, Path]:
    """The folders of the torches to build for, by minor version, as in {"2.13": Path("lib/torch")}.

    They are those that CONV2AFFINE_TORCH names, with ":" between them. Without it, the one of the environment that pip
    installs into: it runs this with that environment's Python, and hides its packages by PYTHONPATH, which -E ignores.
    Without such a torch, the one of the build environment, if any.
    """
    if named := os.environ.get("CONV2AFFINE_TORCH"):
        folders = named.split(os.pathsep)
    else:
        folders = next(filter(None, map(_find_torch, (["-E"], []))), [])
    return {minor_version(Path(folder)): Path(folder) for folder in folders}


def _find_torch(options: list[str]) -> list[str]:
    command = [sys.executable, *options, "-c", FIND_TORCH]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[:1]


def minor_version(torch: Path) -> str:
    """As in "2.13"; importing torch would take seconds."""
    version: str = runpy.run_path(str(torch / "version.py"))["__version__"]
    return ".".join(version.split(".")[:2])


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What pip installs into the build environment; a torch only where there is none to build for."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *([] if torch_folders() else [DEFAULT_TORCH])]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """The same for `pip install -e`."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *([] if torch_folders() else [DEFAULT_TORCH])]
