"""The random-access reader: formats, processes, threads, and damage that it names."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from shards.dataset.grid import Padding
from shards.dataset.manifest import local_copy_name
from shards.dataset.table import SCHEMA, LabelGrid, Shards
from shards.dataset.tar import CorruptSample
from shards.errors import InputError


def digest_of(shards: Shards) -> str:
    content = b"".join(shards.read(index, member) for index in range(len(shards)) for member in ("image", "json"))
    return hashlib.sha256(content).hexdigest()


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_the_columns_are_those_of_the_design(dataset: Path) -> None:
    wanted = {"key", "image_id", "group", "split", "fold", "has_mask", "mask_area", "rle", "label_height"}
    wanted |= {"label_width", "shard", "view", "sex", "age", "spacing_row", "spacing_column"}
    wanted |= {f"{member}_{what}" for member in ("image", "mask") for what in ("offset", "size", "crc32")}
    assert wanted <= set(SCHEMA.names)
    assert Shards(dataset).table.schema.equals(SCHEMA)


def test_missing_values_of_a_column_are_minus_one_false_or_none(dataset: Path) -> None:
    shards = Shards(dataset)
    test, train = shards.indices("test"), shards.indices("train")
    assert len(test) == 4
    assert set(shards.column("fold")[test].tolist()) == {-1}
    assert set(shards.column("has_mask")[test].tolist()) == {False}
    assert set(shards.column("rle")[test].tolist()) == {None}
    assert shards.column("fold")[train].min() == 0


def test_splits_are_found_in_table_order(dataset: Path) -> None:
    shards = Shards(dataset)
    splits = shards.column("split").tolist()
    assert shards.indices("train", "holdout").tolist() == [i for i, s in enumerate(splits) if s in ("train", "holdout")]
    assert shards.indices("always_train").tolist() == []


def test_a_square_film_has_its_own_grid_without_padding(dataset: Path) -> None:
    assert Shards(dataset).grid(0) == LabelGrid(64, 64, Padding(0, 0, 0, 0), 64)


def test_the_json_member_repeats_the_row(dataset: Path) -> None:
    shards = Shards(dataset)
    for index in range(len(shards)):
        facts = json.loads(shards.read(index, "json"))
        assert facts["key"] == shards.column("key")[index]
        assert facts["image_id"] == shards.column("image_id")[index]
        assert facts["rle"] == shards.column("rle")[index]


def test_a_pickled_reader_reads_the_same_bytes(dataset: Path) -> None:
    shards = Shards(dataset)
    expected = digest_of(shards)
    assert digest_of(pickle.loads(pickle.dumps(shards))) == expected


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_reader_leaves_its_parents_position_alone(dataset: Path) -> None:
    shards = Shards(dataset)
    expected = digest_of(shards)
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(send, digest_of(shards).encode())
        finally:
            os._exit(0)
    mine = digest_of(shards)
    os.close(send)
    with os.fdopen(receive) as stream:
        theirs = stream.read()
    os.waitpid(child, 0)
    assert theirs == mine == expected


def test_threads_that_share_a_reader_read_the_same_bytes(dataset: Path) -> None:
    alone, shared = Shards(dataset), Shards(dataset)
    jobs = [(index, member) for index in range(len(alone)) for member in ("image", "json")] * 4
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: shared.read(*job), jobs))
    assert together == [alone.read(*job) for job in jobs]


def test_a_closed_reader_opens_again(dataset: Path) -> None:
    shards = Shards(dataset)
    before = digest_of(shards)
    shards.close()
    assert digest_of(shards) == before


@pytest.mark.parametrize("member", ["image", "mask", "json"])
def test_a_flipped_byte_is_named_by_shard_and_key(own_dataset: Path, member: str) -> None:
    shards = Shards(own_dataset)
    index = int(shards.indices("train")[3])
    tar, key = str(shards.column("shard")[index]), str(shards.column("key")[index])
    flip(own_dataset / tar, int(shards.column(f"{member}_offset")[index]) + 7)
    with pytest.raises(CorruptSample) as error:
        shards.read(index, member)
    assert tar in str(error.value)
    assert key in str(error.value)
    others = [i for i in range(len(shards)) if i != index]
    assert all(shards.read(i, "image") for i in others)


def test_a_truncated_tar_is_named_by_shard_and_key(own_dataset: Path) -> None:
    shards = Shards(own_dataset)
    index = int(shards.indices("train")[-1])
    tar, key = str(shards.column("shard")[index]), str(shards.column("key")[index])
    os.truncate(own_dataset / tar, int(shards.column("image_offset")[index]) + 5)
    with pytest.raises(CorruptSample, match=rf"{tar}.*{key}"):
        shards.read(index, "image")


def test_a_missing_tar_is_named(own_dataset: Path) -> None:
    shards = Shards(own_dataset)
    tar = str(shards.column("shard")[0])
    (own_dataset / tar).unlink()
    with pytest.raises(InputError, match=tar):
        shards.read(0, "image")


def staged(dataset: Path, tars: Path, count: int) -> Shards:
    """The dataset with copies of its first tars in a folder of their own."""
    tars.mkdir()
    for shard in Shards(dataset).manifest["shards"][:count]:
        shutil.copy(dataset / shard["name"], tars / local_copy_name(shard))
    return Shards(dataset, tars)


def test_staged_tars_are_read_in_place_of_the_datasets(own_dataset: Path, tmp_path: Path) -> None:
    expected = digest_of(Shards(own_dataset))
    shards = staged(own_dataset, tmp_path / "tars", 2)
    for shard in shards.manifest["shards"][:2]:
        (own_dataset / shard["name"]).unlink()
    assert digest_of(shards) == expected
    assert digest_of(pickle.loads(pickle.dumps(shards))) == expected, "a worker process reads the copies too"
    shards.close()
    (tmp_path / "tars" / local_copy_name(shards.manifest["shards"][0])).unlink()
    with pytest.raises(InputError, match=rf"{own_dataset}/train-00000.tar: missing"):
        shards.read(0, "image")


def test_a_flipped_byte_is_named_by_the_file_that_was_read(own_dataset: Path, tmp_path: Path) -> None:
    shards = staged(own_dataset, tmp_path / "tars", 1)
    copy = tmp_path / "tars" / local_copy_name(shards.manifest["shards"][0])
    flip(copy, int(shards.column("image_offset")[0]) + 7)
    with pytest.raises(CorruptSample, match=rf"^{copy}: .*remove this file"):
        shards.read(0, "image")
    last = len(shards) - 1
    original = own_dataset / shards.column("shard")[last]
    flip(original, int(shards.column("image_offset")[last]) + 7)
    with pytest.raises(CorruptSample, match=rf"^{original}: .*restore"):
        shards.read(last, "image")


def test_a_copy_of_other_content_is_not_read(own_dataset: Path, tmp_path: Path) -> None:
    shards = staged(own_dataset, tmp_path / "tars", 5)
    other = [{**shard, "sha256": "0" * 64} for shard in shards.manifest["shards"]]
    change_manifest(own_dataset, shards=other)
    for path in (tmp_path / "tars").iterdir():
        path.write_bytes(b"of the dataset that stood here before")
    assert digest_of(Shards(own_dataset, tmp_path / "tars")) == digest_of(Shards(own_dataset))


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


def change_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


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


def test_columns_are_arrays_of_the_tables_length(dataset: Path) -> None:
    shards = Shards(dataset)
    columns: list[npt.NDArray[Any]] = [shards.column(name) for name in SCHEMA.names]
    assert {len(column) for column in columns} == {len(shards)} == {33}
    assert np.issubdtype(shards.column("image_crc32").dtype, np.integer)
