"""Checks of option values."""

from pathlib import Path

import pytest

from pneumo_dist.cli.options import check_folder
from shards.errors import InputError


def test_existing_and_new_folders_are_accepted(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "new" / "nested"):
        check_folder(path)
    assert list(tmp_path.iterdir()) == []


def test_file_at_the_path_or_above_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "folder", file / "folder" / "nested"):
        with pytest.raises(InputError) as caught:
            check_folder(path)
        assert str(caught.value) == f"--out {path}: {file} is a file; give a folder"
