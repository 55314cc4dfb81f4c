"""Where HDF5 files are: paths to write to, and files to read."""

from __future__ import annotations

import errno
import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

PART = ".part"  # ends the name of a file until all of it is written


def target_of(path: object) -> Path:
    """The path of a file to write, checked before anything is computed."""
    if not isinstance(path, str | os.PathLike):
        name = type(path).__name__
        raise TypeError(f"path must be the path of a file, got {name}; it is the first argument")
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"path ({path}) must be a file, and is a folder")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder of path ({path}) must be there")
    check_absent(target)
    return target


def check_absent(path: Path) -> None:
    """Refuse to write over a file."""
    if os.path.lexists(path):  # a link to nothing is a file too
        raise FileExistsError(f"path ({path}) must not exist; delete the file, or choose another name")


def h5py_module() -> ModuleType:
    """h5py."""
    return extra("h5py")


def open_hdf5(path: str | os.PathLike[str]) -> Any:
    """A file that others wrote, for reading."""
    h5py, part = h5py_module(), Path(f"{path}{PART}")
    if part.exists() and not os.path.lexists(path):
        raise FileNotFoundError(
            errno.ENOENT, f"this file is not finished, and {part} is a part of it; save it again to continue", str(path)
        )
    with open(path, "rb"):  # Python's error is clearer where there is none, or a folder
        pass
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise OSError(
            f"path ({path}) must be a whole HDF5 file that no process is writing, and is not: {error}"
        ) from error


def extra(name: str) -> ModuleType:
    """A module of the extra `files`."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"files need {name.partition('.')[0]}; install it with: pip install 'conv2affine[files]'"
        ) from error
