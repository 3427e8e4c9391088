"""A disk that fills up at any moment of a command: one line, nothing lost, and the same command finishes the work."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from full_disk import FullDisk, moments
from shard_builds import build_line, good, write_salt

from shards.phantom.dataset import synthesize

COMMANDS = ("build", "append", "finalize", "split again", "png", "nnunet")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films, a salt, and a place for what each command begins with."""
    root = tmp_path_factory.mktemp("begun")
    synthesize(root / "films", images=12, size=64, positive_rate=0.5, seed=4)
    synthesize(root / "more", images=3, size=64, positive_rate=0.5, seed=5)
    write_salt(root)
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line_and_the_same_command_finishes(
    begun: Path,
    cli: Callable[..., Any],
    tree_of: Callable[[Path], dict[str, str]],
    tmp_path: Path,
    command: str,
) -> None:
    salt = ("--patient-salt-file", begun / "salt")
    build = build_line(begun / "films", tmp_path / "out", *salt)
    if command == "finalize":
        for number in (1, 2):
            good(cli(*build, "--task", f"{number}/2"))
    elif command != "build":
        good(cli(*build))
    line = {
        "build": build,
        "append": [*build, "--test-dicom", begun / "more/dicom-images", "--append"],
        "finalize": ["finalize", tmp_path / "out"],
        "split again": ["finalize", tmp_path / "out", "--folds", 3],
        "png": ["export", tmp_path / "out", "--png", tmp_path / "exported"],
        "nnunet": ["export", tmp_path / "out", "--nnunet", tmp_path / "exported"],
    }[command]
    before = shutil.copytree(tmp_path, begun / f"before {command}")
    with pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(patch)
        good(cli(*line))
    whole = tree_of(tmp_path)
    for moment in moments(disk.writes):
        shutil.rmtree(tmp_path)
        shutil.copytree(before, tmp_path)
        kept = tree_of(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            FullDisk(patch, moment)
            told = cli(*line).only_line()
        assert told.startswith(f"error: {tmp_path}/")
        assert "No space left on device; free some space, or give another folder, then run the same" in told
        left = tree_of(tmp_path)
        assert not [name for name in left if name.endswith(".tmp")]
        assert not [name for name in kept if name in whole and name not in left]
        if command in ("png", "nnunet"):  # an export begins with an empty folder
            shutil.rmtree(tmp_path / "exported")
        good(cli(*line))
        assert tree_of(tmp_path) == whole
