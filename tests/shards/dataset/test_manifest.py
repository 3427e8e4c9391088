"""Folders without a valid manifest are refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from edited_dataset import change_manifest

from shards.dataset.table import Shards
from shards.errors import InputError


def without_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def with_version(folder: Path) -> None:
    change_manifest(folder, format_version=99)


def with_format(folder: Path) -> None:
    change_manifest(folder, format="something else")


def with_text(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def with_a_path_for_a_digest(folder: Path) -> None:
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    change_manifest(folder, shards=[{**shards[0], "sha256": "../../elsewhere"}, *shards[1:]])


def with_cut_table(folder: Path) -> None:
    os.truncate(folder / "samples.parquet", 100)


def with_damaged_column_name(folder: Path) -> None:
    path = folder / "samples.parquet"
    path.write_bytes(path.read_bytes().replace(b"perceptual_hash", b"\x80erceptual_hash"))


def without_table(folder: Path) -> None:
    (folder / "samples.parquet").unlink()


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (without_manifest, "no manifest.json"),
        (with_version, "version 99"),
        (with_format, "not a manifest"),
        (with_text, "not valid JSON"),
        (with_a_path_for_a_digest, "damaged at shards.0.sha256"),
        (with_cut_table, "samples.parquet"),
        (with_damaged_column_name, "samples.parquet"),
        (without_table, "samples.parquet"),
    ],
)
def test_a_folder_that_is_no_whole_dataset_is_refused(
    own_dataset: Path, damage: Callable[[Path], None], part: str
) -> None:
    damage(own_dataset)
    with pytest.raises(InputError, match=part) as error:
        Shards(own_dataset)
    assert str(own_dataset) in str(error.value)
