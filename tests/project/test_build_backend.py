"""The build backend: which torch it builds for, and whether pip has to bring one."""

import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOOK = "import build_backend as b; print(b.torch_folders(), b.DEFAULT_TORCH in b.get_requires_for_build_wheel())"


def fake_torch(folder, version):
    """What a search for torch finds."""
    torch = folder / "torch"
    torch.mkdir(parents=True)
    (torch / "__init__.py").write_text("raise AssertionError('torch is not to be imported')")
    (torch / "version.py").write_text(f"__version__ = {version!r}\n")
    return torch


@pytest.fixture
def source(tmp_path):
    """The files of the clone that the hooks read; they write next to them."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("build_backend.py", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


class Target:
    """An environment to install into, and beside it the packages of the one that pip builds in."""

    def __init__(self, folder, source):
        self.source = source
        venv.create(folder / "env", with_pip=False)
        self.python = folder / "env/bin/python"
        self.site = next(folder.glob("env/lib/python*/site-packages"))
        self.overlay = folder / "overlay"
        self.overlay.mkdir()
        setuptools = distribution("setuptools")
        for name in {file.parts[0] for file in setuptools.files}:
            (self.overlay / name).symlink_to(setuptools.locate_file(name))

    def ask(self, **variables):
        """Run the hook as pip does: with the target's Python, which sees the build environment by PYTHONPATH alone."""
        environment = {name: value for name, value in os.environ.items() if name != "CONV2AFFINE_TORCH"}
        environment |= {"PYTHONPATH": f"{self.overlay}:{self.source}", "PYTHONNOUSERSITE": "1", **variables}
        command = [self.python, "-c", HOOK]
        result = subprocess.run(command, cwd=self.source, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()[-1]


def found(minor, folder):
    return f"{dict([(minor, folder)])} False"


@pytest.fixture
def target(tmp_path, source):
    return Target(tmp_path, source)


def test_the_torch_that_is_there(target):
    torch = fake_torch(target.site, "2.14.1+cpu")
    fake_torch(target.overlay, "2.13.0")
    assert target.ask() == found("2.14", torch)


def test_the_torch_of_the_build_environment(target):
    torch = fake_torch(target.overlay, "2.13.0")
    assert target.ask() == found("2.13", torch)


def test_no_torch_so_pip_brings_one(target):
    assert target.ask() == "{} True"


def test_torches_by_name(target, tmp_path):
    fake_torch(target.site, "2.15.0")
    torches = [fake_torch(tmp_path / version, version) for version in ("2.13.0", "2.14.1")]
    expected = dict(zip(("2.13", "2.14"), torches, strict=True))
    assert target.ask(CONV2AFFINE_TORCH=":".join(map(str, torches))) == f"{expected} False"


@pytest.mark.parametrize(
    ("versions", "requirement"),
    [
        (["2.14.1+cu130"], "torch<2.15,>=2.14"),
        (["2.14.1", "2.13.0"], "torch<2.15,>=2.13"),
        (["2.13.0", "2.15.0"], "must be minor versions that follow one another"),
        (["2.15.0"], "torch 2.15 must be one that conv2affine is tested with: install torch 2.13 or 2.14"),
        (["2.14.1", "2.15.0"], "torch 2.14 or 2.15 must be one that"),
        (["2.12.1"], "torch 2.12 must be one that"),
    ],
    ids=["one", "two", "a gap", "a new one", "a new one too", "an old one"],
)
def test_what_the_wheel_requires(tmp_path, source, versions, requirement):
    torches = [fake_torch(tmp_path / version, version) for version in versions]
    code = "import build_backend as b; b.prepare_metadata_for_build_wheel('.')"
    environment = {**os.environ, "CONV2AFFINE_TORCH": ":".join(map(str, torches)), "PYTHONPATH": str(source)}
    result = subprocess.run([sys.executable, "-c", code], cwd=source, env=environment, capture_output=True, text=True)
    metadata = "".join(path.read_text() for path in source.glob("*.dist-info/METADATA"))
    assert requirement in metadata + result.stderr


def test_a_build_that_fails_ends_with_the_message_of_cmake(tmp_path, source):
    environment = {**os.environ, "CONV2AFFINE_TORCH": str(fake_torch(tmp_path, "2.13.0"))}
    command = [sys.executable, "setup.py", "build_ext"]
    result = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "does not appear to contain CMakeLists.txt" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("conv2affine is not built: ")
    assert "Traceback" not in result.stderr
