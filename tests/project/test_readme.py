"""README.md taken apart: its commands and its code in a new environment, as a new user types them."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PathDistribution, distribution
from pathlib import Path

import onnx
import pytest
from packaging.requirements import Requirement

from tests.onnx import models as onnx_models

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CODE = "".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
COMMANDS = [
    line.partition("  #")[0].strip() for line in "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).splitlines()
]
INSTALL = "pip install ."
BUILD_REQUIREMENTS = ["setuptools", "cmake", "ninja", "pybind11"]
pytestmark = [pytest.mark.long, pytest.mark.serial]


def pack(installed, folder):
    """Make a wheel of an installed distribution: what pip would download to build with. Here it downloads nothing."""
    entry_points = {point.name for point in installed.entry_points}  # pip makes their scripts
    with zipfile.ZipFile(folder / f"{installed.name}-{installed.version}-py3-none-any.whl", "w") as wheel:
        for file in installed.files:
            if file.parts[0] != "..":
                wheel.write(file.locate(), file)
            elif file.name not in entry_points:
                wheel.write(file.locate(), f"{installed.name}-{installed.version}.data/scripts/{file.name}")


class Newcomer:
    """A clone, and an environment in which only what conv2affine requires is visible."""

    def __init__(self, folder):
        self.clone, self.elsewhere, self.environment = (folder / name for name in ("clone", "elsewhere", "env"))
        self.elsewhere.mkdir()
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for file in files.rstrip("\0").split("\0"):
            (self.clone / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, self.clone / file)
        subprocess.run([sys.executable, "-m", "venv", self.environment], check=True)
        self.site = next(self.environment.glob("lib/python*/site-packages"))
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        for name in BUILD_REQUIREMENTS:
            pack(distribution(name), self.wheels)
        hook = f"import build_backend as b; b.prepare_metadata_for_build_wheel({str(folder)!r})"
        subprocess.run([sys.executable, "-c", hook], cwd=self.clone, check=True)
        self.requirements = PathDistribution(next(folder.glob("*.dist-info"))).requires

    def link(self, requirements, extra=""):
        """Make what satisfies these requirements here, and what that requires, visible in the new environment."""
        for requirement in map(Requirement, requirements):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            here = distribution(requirement.name)
            for file in here.files:
                path = file if file.parts[0] == ".." else Path(file.parts[0])
                if path.name != "__pycache__" and not (self.site / path).exists():
                    (self.site / path).parent.mkdir(parents=True, exist_ok=True)
                    (self.site / path).symlink_to(here.locate_file(path).resolve())
            for wanted in requirement.extras or [""]:
                self.link(here.requires or [], wanted)

    def run(self, command, folder=None):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment["PATH"] = f"{self.environment / 'bin'}:{environment['PATH']}"
        environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)}
        if not command.startswith("pip"):
            environment["PYTHONWARNINGS"] = "error"
        result = subprocess.run(
            command, shell=True, cwd=folder or self.clone, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
        return result.stdout


@pytest.fixture(scope="module")
def newcomer():
    with tempfile.TemporaryDirectory() as folder:
        newcomer = Newcomer(Path(folder))
        newcomer.link(newcomer.requirements)
        newcomer.run(INSTALL)
        yield newcomer


@pytest.mark.parametrize("place", ["clone", "elsewhere"])
def test_code_runs(newcomer, place):
    folder = getattr(newcomer, place)
    (folder / "blocks.py").write_text(CODE)
    newcomer.run("python - < blocks.py", folder)
    newcomer.run("python -c 'from conv2affine import *'", folder)


def test_commands_run(newcomer):
    """In their order, after the code: an extra brings more than that may need."""
    onnx.save(onnx_models.cnn(), newcomer.clone / "model.onnx")
    assert INSTALL in COMMANDS
    for command in COMMANDS:
        if command.startswith("make "):
            command = command.replace("make", "make --dry-run")  # they download
        for extra in re.findall(r"\[(\w+)\]", command):
            newcomer.link(newcomer.requirements, extra)
        if command != INSTALL:
            newcomer.run(command)
