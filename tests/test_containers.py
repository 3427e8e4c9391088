"""The Dockerfile: what it copies exists and is not ignored, and it fits the project's pins."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "containers/Dockerfile").read_text()
KEPT = [
    line[1:] for line in (ROOT / "containers/Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
]


def argument(name: str) -> str:
    found = re.search(rf"^ARG {name}=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert found, name
    return found[1]


@pytest.mark.parametrize("name", KEPT)
def test_the_context_holds_what_is_there(name: str) -> None:
    assert (ROOT / name).exists()


def test_the_context_holds_what_a_wheel_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = [name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    files = [project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "setup.py"]
    # setup.py copies configs, and the pins are those of the set-up.
    assert {*packages, *files, "configs", "constraints.txt", "MANIFEST.in"} <= {*KEPT}


def test_base_and_extra_are_ones_that_the_project_supports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = re.fullmatch(r"python:(\d+)\.(\d+)-slim-\w+", argument("BASE"))
    least = re.fullmatch(r">=(\d+)\.(\d+)", project["requires-python"])
    assert version and least and tuple(map(int, version.groups())) >= tuple(map(int, least.groups()))
    assert argument("EXTRA") in project["optional-dependencies"]
    assert "-c constraints.txt" in DOCKERFILE


def test_no_registry_is_named() -> None:
    assert not re.search(r"[a-z0-9-]+\.(io|com|org|net|dev)\b", DOCKERFILE)
