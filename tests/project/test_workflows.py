"""The workflows: what they call exists, and a release is published only after everything else has passed."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
pytest.importorskip("yaml", reason="the workflow files are YAML")


def load_script():
    spec = importlib.util.spec_from_file_location("workflows", ROOT / ".ci/workflows.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["workflows"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


workflows = load_script()
NAMES = sorted(path.stem for path in workflows.WORKFLOWS.glob("*.yml"))
STEPS = [step for name in NAMES for step in workflows.steps(name)]


@pytest.mark.parametrize("command", sorted({step.command for step in STEPS if step.command}))
def test_commands_are_targets_of_the_makefile(command):
    target = re.match(r"make ([\w-]+)", command)[1]
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


def test_release_publishes_last():
    """After the tag is checked, all tests have passed, and the wheels and the sdist are there."""
    jobs = [step.job.partition(" ")[0] for step in workflows.steps("release")]
    assert jobs[0] == "release/version"
    assert {"tests/tests", "tests/fuzzing", "wheels/wheels", "wheels/check", "wheels/sdist"} <= {*jobs}
    assert jobs[jobs.index("release/publish") :] == ["release/publish"] * 3
    assert {*workflows.needs(workflows.load("release")["jobs"]["publish"])} == {"version", "tests", "wheels"}


def test_artifacts_are_made_before_they_are_used():
    made = set()
    for step in workflows.steps("release"):
        name = dict(step.arguments).get("name")
        if step.uses == "actions/upload-artifact":
            assert name not in made
            made.add(name)
        elif step.uses == "actions/download-artifact":
            assert name in made
    assert made == {"wheels", "sdist"}


@pytest.mark.parametrize(
    ("tag", "passes"),
    [(f"v{workflows.VERSION}", True), (workflows.VERSION, False), ("v99.0.0", False), ("", False)],
    ids=["right", "no v", "other", "none"],
)
def test_tag_must_be_the_version(tag, passes):
    result = subprocess.run(["make", "release-check", f"TAG={tag}"], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode == 0) is passes, result.stderr
    assert passes or f"the tag ({tag}) must be v{workflows.VERSION}" in result.stdout


def test_the_same_torches_everywhere():
    torches = re.search(r"^WHEEL_TORCHES \?= (.+)", MAKEFILE, re.MULTILINE)[1].split()
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r"--target /torch/\S+ torch==(\S+)", pyproject) == torches
    assert re.search(r'CONV2AFFINE_TORCH = "(.+?)"', pyproject)[1] == ":".join(f"/torch/{v}/torch" for v in torches)
    for workflow, job in ("tests", "tests"), ("wheels", "check"):
        assert workflows.load(workflow)["jobs"][job]["strategy"]["matrix"]["torch"] == torches
    tested = re.search(r"^TESTED_WITH = (.+)  #", (ROOT / "setup.py").read_text(), re.MULTILINE)[1]
    assert tested == str([tuple(map(int, torch.split(".")[:2])) for torch in torches])


def test_jobs_come_after_those_that_they_need():
    assert workflows.in_order({"a": {"needs": ["b", "c"]}, "b": {"needs": "c"}, "c": {}}) == ["c", "b", "a"]
    with pytest.raises(ValueError, match="need each other"):
        workflows.in_order({"a": {"needs": "b"}, "b": {"needs": "a"}})


def test_steps_move_artifacts_and_name_what_needs_github(tmp_path):
    clone, artifacts = tmp_path / "clone", tmp_path / "artifacts"
    clone.mkdir()
    artifacts.mkdir()

    def run(uses="", command="", missing="", **arguments):
        return workflows.run(workflows.Step("job", uses, tuple(arguments.items()), command, missing), clone, artifacts)

    assert run(command="mkdir dist && echo x > dist/a.whl") == ""
    assert run("actions/upload-artifact", name="wheels", path="dist/*.whl") == ""
    assert run("actions/download-artifact", name="wheels", path="here") == ""
    assert (clone / "here/a.whl").read_text() == "x\n"
    assert run("pypa/gh-action-pypi-publish") == "needs GitHub"
    assert run(command="exit 1", missing="python 3.10") == "needs python 3.10"
    with pytest.raises(FileNotFoundError, match=r"makes no dist/\*.tar.gz"):
        run("actions/upload-artifact", name="sdist", path="dist/*.tar.gz")
    with pytest.raises(subprocess.CalledProcessError):
        run(command="false; true")
