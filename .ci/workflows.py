"""Run here what the workflows run on GitHub: every `run:` step that this machine can run, in order.

    python .ci/workflows.py release    # and the workflows that it calls
    python .ci/workflows.py --list     # name the steps of all workflows, and run none

The jobs share one fresh clone of what is committed, in a temporary folder. Of a matrix, the entry with this Python and
the Makefile's torch is run. What needs GitHub, another Python or another torch is named. In place of cibuildwheel,
`make wheel` makes the wheel of this Python.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = ROOT / ".github/workflows"
MAKEFILE = (ROOT / "Makefile").read_text()
HERE = {
    "python": "{}.{}".format(*sys.version_info),
    "torch": re.search(r"^TORCH \?= (\S+)", MAKEFILE, re.MULTILINE)[1],
}
VERSION = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


@dataclass(frozen=True)
class Step:
    """One step of a job, for one entry of its matrix."""

    job: str
    uses: str
    arguments: tuple[tuple[str, str], ...]
    command: str
    missing: str  # why it cannot run here; "" if it can


def load(name: str) -> dict[str, Any]:
    """A workflow file."""
    return yaml.safe_load((WORKFLOWS / f"{name}.yml").read_text())


def in_order(jobs: dict[str, Any]) -> list[str]:
    """The names of the jobs, each after those that it needs."""
    done: list[str] = []
    while len(done) < len(jobs):
        ready = [name for name in jobs if name not in done and {*needs(jobs[name])} <= {*done}]
        if not ready:
            raise ValueError(f"{set(jobs) - set(done)} need each other, or jobs that do not exist")
        done += ready
    return done


def needs(job: dict[str, Any]) -> list[str]:
    """The names of the jobs that must have passed before."""
    names = job.get("needs", [])
    return [names] if isinstance(names, str) else names


def steps(workflow: str) -> Iterator[Step]:
    """The steps of a workflow and of those that it calls, in order."""
    jobs = load(workflow)["jobs"]
    for name in in_order(jobs):
        if called := re.fullmatch(r"\./\.github/workflows/(\w+)\.yml", jobs[name].get("uses", "")):
            yield from steps(called[1])
            continue
        matrix = jobs[name].get("strategy", {}).get("matrix", {})
        for entry in (dict(zip(matrix, values, strict=True)) for values in itertools.product(*matrix.values())):
            others = [f"{key} {value}" for key, value in entry.items() if value != HERE[key]]
            label = " ".join([f"{workflow}/{name}", *entry.values()])
            for step in jobs[name].get("steps", []):
                arguments = tuple((key, fill(str(value), entry)) for key, value in step.get("with", {}).items())
                command = fill(step.get("run", ""), entry)
                if command or not others:
                    yield Step(label, step.get("uses", "").split("@")[0], arguments, command, ", ".join(others))


def fill(text: str, entry: dict[str, str]) -> str:
    """The text with the matrix entry in place of its expressions."""
    return re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda match: entry[match[1]], text)


def run(step: Step, clone: Path, artifacts: Path) -> str:
    """Run a step; returns why it could not, or ""."""
    arguments = dict(step.arguments)
    if step.missing:
        return f"needs {step.missing}"
    if step.command or step.uses == "pypa/cibuildwheel":
        command = step.command or "make wheel PYTHON=python && mkdir -p wheelhouse && mv dist/*.whl wheelhouse"
        print(f"{step.job}: {command}", flush=True)
        environment = {**os.environ, "GITHUB_REF_NAME": f"v{VERSION}", "CI": "true"}
        environment["PATH"] = f"{clone.parent / 'bin'}:{environment['PATH']}"
        subprocess.run(["bash", "-e", "-c", command], cwd=clone, env=environment, check=True)
    elif step.uses == "actions/upload-artifact":
        files = list(clone.glob(arguments["path"]))
        if not files:
            raise FileNotFoundError(f"{step.job} makes no {arguments['path']}")
        (artifacts / arguments["name"]).mkdir()
        for file in files:
            shutil.move(file, artifacts / arguments["name"])
    elif step.uses == "actions/download-artifact":
        shutil.copytree(artifacts / arguments["name"], clone / arguments["path"], dirs_exist_ok=True)
    elif step.uses not in ("actions/checkout", "actions/setup-python"):
        return "needs GitHub"
    return ""


def main() -> None:
    """Run the workflows that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflows", nargs="*", default=sorted(path.stem for path in WORKFLOWS.glob("*.yml")))
    parser.add_argument("--list", action="store_true", help="name the steps, and run none")
    options = parser.parse_args()
    plan = list(dict.fromkeys(step for workflow in options.workflows for step in steps(workflow)))
    if options.list:
        for step in plan:
            print(f"{step.job}: {step.command or step.uses}" + f" (needs {step.missing})" * bool(step.missing))
        return
    with tempfile.TemporaryDirectory() as folder:
        clone, artifacts, programs = (Path(folder) / name for name in ("clone", "artifacts", "bin"))
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        artifacts.mkdir()
        programs.mkdir()
        (programs / "python").symlink_to(os.path.realpath(sys.executable))
        left_out = [(step, reason) for step in plan if (reason := run(step, clone, artifacts))]
    for step, reason in left_out:
        print(f"not run here, {reason}: {step.job}: {step.command or step.uses}")


if __name__ == "__main__":
    main()
