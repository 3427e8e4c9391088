"""A good dataset has no faults; each kind of damage is found and named."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from damage import flip_bit
from edited_dataset import edit_rows, write_rows

from shards.dataset.manifest import MANIFEST
from shards.dataset.table import TABLE, Shards
from shards.dataset.verify import dataset_digest, verify

TAR = "train-00001.tar"


def test_a_good_dataset_has_no_faults_and_every_sample_is_heard(dataset: Path) -> None:
    heard: list[None] = []
    assert verify(dataset, lambda: heard.append(None)) == []
    assert len(heard) == 33


def test_manifest_of_a_version_with_fewer_splits_is_good(own_dataset: Path) -> None:
    path = own_dataset / MANIFEST
    manifest = json.loads(path.read_text())
    for name in ("unlabelled_split", "duplicate"):
        del manifest["counts"][name]
    path.write_text(json.dumps(manifest))
    assert verify(own_dataset) == []


def test_a_flipped_byte_of_a_member_is_named_by_shard_and_key(own_dataset: Path) -> None:
    shards = Shards(own_dataset)
    index = next(i for i in range(len(shards)) if shards.column("shard")[i] == TAR)
    flip_bit(own_dataset / TAR, int(shards.column("image_offset")[index]) + 9)
    faults = verify(own_dataset)
    assert len(faults) == 2
    assert all(TAR in fault for fault in faults)
    assert shards.column("key")[index] in faults[1]


def test_a_flipped_byte_between_members_is_found(own_dataset: Path) -> None:
    flip_bit(own_dataset / TAR, 120)
    assert any(TAR in fault and "digest" in fault for fault in verify(own_dataset))


def test_a_truncated_tar_is_found(own_dataset: Path) -> None:
    os.truncate(own_dataset / TAR, 4000)
    assert any(TAR in fault and "size" in fault for fault in verify(own_dataset))


@pytest.mark.parametrize("name", [TAR, "train-00001.idx", "test-00000.tar", "test-00000.idx"])
def test_a_missing_file_is_named(own_dataset: Path, name: str) -> None:
    (own_dataset / name).unlink()
    assert any(f"{own_dataset / name}: missing" in fault for fault in verify(own_dataset))


def test_an_index_that_does_not_fit_its_tar_is_found(own_dataset: Path) -> None:
    index = own_dataset / "train-00001.idx"
    index.write_text(index.read_text().replace("image.png 512 ", "image.png 513 ", 1))
    assert any("train-00001.idx" in fault for fault in verify(own_dataset))


def test_a_shard_that_the_manifest_does_not_list_is_found(own_dataset: Path) -> None:
    (own_dataset / "train-00099.tar").write_bytes((own_dataset / TAR).read_bytes())
    assert any("train-00099.tar" in fault for fault in verify(own_dataset))


def test_a_changed_table_is_found(own_dataset: Path) -> None:
    rows = pq.read_table(own_dataset / TABLE).to_pylist()
    rows[0]["sex"] = "O"
    write_rows(own_dataset / TABLE, rows)
    assert any(TABLE in fault and "digest" in fault for fault in verify(own_dataset))


@pytest.mark.parametrize("home", ["fold", "holdout"])
def test_a_leaking_group_is_named(own_dataset: Path, home: str) -> None:
    def leak(rows: list[dict[str, Any]]) -> None:
        first = next(row for row in rows if row["fold"] == 0)
        second = next(row for row in rows if (row["fold"] == 1 if home == "fold" else row["split"] == "holdout"))
        second["group"] = first["group"] = "leaking"

    edit_rows(own_dataset, leak)
    assert any("leaking" in fault and "two folds" in fault for fault in verify(own_dataset))


@pytest.mark.parametrize("column", ["mask_area", "rle"])
def test_a_label_that_disagrees_with_its_area_is_named(own_dataset: Path, column: str) -> None:
    keys: list[str] = []

    def damage(rows: list[dict[str, Any]]) -> None:
        row = next(row for row in rows if row["has_mask"])
        row[column] = row["mask_area"] + 1 if column == "mask_area" else "0 1"
        keys.append(row["key"])

    edit_rows(own_dataset, damage)
    assert [fault for fault in verify(own_dataset) if keys[0] in fault and "RLE" in fault]


def test_a_label_moved_away_from_its_mask_is_named(own_dataset: Path) -> None:
    keys: list[str] = []

    def move(rows: list[dict[str, Any]]) -> None:
        row = next(row for row in rows if row["has_mask"])
        row["rle"] = f"0 {row['mask_area']}"
        keys.append(row["key"])

    edit_rows(own_dataset, move)
    assert [fault for fault in verify(own_dataset) if keys[0] in fault and "differs from its RLE" in fault]


@pytest.mark.parametrize("key", ["a.b", "a/b", "a b", ""])
def test_an_unsafe_key_is_named(own_dataset: Path, key: str) -> None:
    def rename(rows: list[dict[str, Any]]) -> None:
        rows[0]["key"] = key

    edit_rows(own_dataset, rename)
    assert any(f"{key!r} is not a safe key" in fault for fault in verify(own_dataset))


def test_a_key_that_stands_twice_is_found(own_dataset: Path) -> None:
    def double(rows: list[dict[str, Any]]) -> None:
        rows[1]["key"] = rows[0]["key"]

    edit_rows(own_dataset, double)
    assert any("twice" in fault for fault in verify(own_dataset))


def test_a_wrong_count_is_found(own_dataset: Path) -> None:
    manifest = json.loads((own_dataset / MANIFEST).read_text())
    manifest["counts"]["holdout"] += 1
    (own_dataset / MANIFEST).write_text(json.dumps(manifest))
    assert any("holdout" in fault for fault in verify(own_dataset))


def test_the_dataset_digest_changes_with_the_table_only_through_the_manifest(own_dataset: Path) -> None:
    before = dataset_digest(Shards(own_dataset))
    assert dataset_digest(Shards(own_dataset)) == before
    edit_rows(own_dataset, lambda rows: rows[0].update(sex="O"))
    assert dataset_digest(Shards(own_dataset)) != before
