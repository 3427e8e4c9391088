"""The project's own files: dependencies, and what a wheel holds."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from integration.conftest import ROOT, environment

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("pneumo_dist", "shards")


def canonical(requirement: str) -> str:
    name = re.split(r"[^A-Za-z0-9._-]", requirement)[0]
    return re.sub("[-_.]+", "-", name).lower()


def imported_packages() -> set[str]:
    """Top-level packages that either package imports, except the standard library and the two themselves."""
    nodes = [
        node
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
    ]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - set(PACKAGES)


def test_every_imported_package_is_declared() -> None:
    declared = [
        *PROJECT["dependencies"],
        *(each for extra in PROJECT["optional-dependencies"].values() for each in extra),
    ]
    known = {canonical(each) for each in declared}
    distributions = packages_distributions()
    undeclared = {
        name: distributions.get(name)
        for name in imported_packages()
        if not known & {canonical(each) for each in distributions.get(name, [])}
    }
    assert not undeclared


def test_every_dependency_is_pinned() -> None:
    pins = {canonical(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {canonical(each) for each in PROJECT["dependencies"]} <= pins


@pytest.mark.slow
def test_wheel_holds_configs_and_types_and_runs_without_a_checkout(tmp_path: Path) -> None:
    source, unpacked = tmp_path / "source", tmp_path / "unpacked"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for file in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    copies = unpacked / "pneumo_dist" / "configs"
    assert {p.relative_to(copies): p.read_bytes() for p in copies.rglob("*.yaml")} == {
        p.relative_to(ROOT / "configs"): p.read_bytes() for p in (ROOT / "configs").rglob("*.yaml")
    }
    assert all((unpacked / package / "py.typed").exists() for package in PACKAGES)
    done = subprocess.run(
        [sys.executable, "-m", "pneumo_dist", "train", "--dry-run", "--config", "demo", "--runs", tmp_path / "runs"],
        env={**environment(), "PYTHONPATH": str(unpacked)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "name: demo" in done.stdout


@pytest.mark.parametrize(("page", "least"), [("reproduce", 11), ("security", 60)])
def test_pages_name_tests_that_exist(page: str, least: int) -> None:
    """docs/reproduce.md says which test checks each trait of a recipe, docs/security.md each promise."""
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", (ROOT / f"docs/{page}.md").read_text()))
    defined = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert len(named) >= least and sorted(named - defined) == []
