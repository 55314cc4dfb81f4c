"""What is written down in two places is the same in both."""

import re
from pathlib import Path

import conv2affine

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def pin(tool):
    """The version of a tool that `make lint` uses."""
    return re.search(rf'"{tool}==([^"]+)"', PYPROJECT)[1]


def test_pre_commit_has_the_pins_of_make_lint():
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    revisions = re.findall(r"(\S+)\n    rev: v(\S+)", config)
    assert len(revisions) == 2
    for repository, revision in revisions:
        tool = "ruff" if "ruff" in repository else "clang-format"
        assert revision == pin(tool)


def test_citation_has_the_version():
    version = re.search(r'^version = "(.+)"', PYPROJECT, re.MULTILINE)[1]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version}\n" in citation
    bibtex = (ROOT / "docs/faq.md").read_text()
    assert f"version = {{{version}}}" in bibtex
    assert f"Version {version}, " in (ROOT / "docs/index.md").read_text()
    assert f"date    = {{{re.search('date-released: (.+)', citation)[1]}}}" in bibtex


def test_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    exec("".join(blocks), {})


def test_known_issues_name_tests_that_exist():
    """docs/known-issues.md has a file before its test functions."""
    page = (ROOT / "docs/known-issues.md").read_text()
    named = re.findall(r"`([\w/]+\.py)`: `(test_\w+)`", page)
    assert len(named) == page.count("`: `test_")
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text()


def test_pages_name_tests_that_are_there():
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "Makefile"):
        for path in re.findall(r"\btests/[\w/]+\.(?:py|txt)\b", page.read_text()):
            assert (ROOT / path).exists() or "NAME" in path, f"{page.name} names {path}"


def test_api_reference_has_every_public_name():
    pages = "".join(path.read_text() for path in (ROOT / "docs/api").glob("*.md"))
    documented = set(re.findall(r"^\.\. auto\w+:: (?:conv2affine\.)?(\S+)", pages, re.MULTILINE))
    assert set(conv2affine.__all__) <= documented


def test_contributing_names_every_file():
    """In its map of files, `csrc/NAME.*` and the modules of each folder by their names."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## Where things are\n")[2].partition("\n## ")[0]
    assert all(list((ROOT / "csrc").glob(name)) for name in re.findall(r" csrc/(\S+\.\S+)", section))
    named = set(re.findall(r"\w+", section))
    modules = [path for folder in ("conv2affine/*/**/*.py", "csrc/*.h") for path in ROOT.glob(folder)]
    assert {path.stem for path in modules} - named - {"__init__"} == set()


def test_contributing_names_what_its_files_have():
    """In each step of a guide, names in capitals and classes are in a file of that step."""
    for step in re.findall(r"^\d\. .*?(?=^\d\. |^$)", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL):
        paths = [ROOT / path for path in re.findall(r"`((?:csrc|conv2affine|tests)/[\w./]*)`", step)]
        beside = [path.parent / name for path in paths for name in re.findall(r"`(\w+\.\w+)`", step)]
        files = [file for path in (*paths, *beside) for file in (path.glob("*.*") if path.is_dir() else [path])]
        text = "".join(file.read_text() for file in files if file.is_file())
        names = re.findall(r"`([A-Z_]{4,}|[A-Z][a-z]+[A-Z]\w+)`", step) if text else []
        assert [name for name in names if name not in text] == [], step
