"""Stored predictions: an exact round trip, and damage is noticed."""

import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import flip_bit
from edited_dataset import resign

from pneumo_dist.maps.store import (
    MANIFEST,
    PNG,
    TABLE,
    Predictions,
    encode_map,
    film_facts,
    is_whole,
    open_predictions,
    stored_digest,
    write_block,
    write_table,
)
from pneumo_dist.scoring.arrays import Map
from shards.dataset.table import Shards
from shards.dataset.tar import CorruptSample
from shards.drawing import encode_image
from shards.errors import InputError


@pytest.fixture
def maps(films: Shards) -> list[Map]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (64, 64), np.uint8) for _ in range(len(films))]


@pytest.fixture
def folder(films: Shards, maps: list[Map], tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = []
    for block, indices in enumerate(((5, 6, 7, 8, 9, 10, 11), (0, 1, 2, 3, 4))):
        content = [(film_facts(films, index), encode_map(maps[index])) for index in indices]
        rows += write_block(tmp_path / f"pred-{block:05d}.tar", content)
    write_table(tmp_path, rows, {"experiment": "exp"})
    return tmp_path


def test_maps_come_back_exactly_and_in_key_order(films: Shards, maps: list[Map], folder: Path) -> None:
    predictions = Predictions(folder)
    assert len(predictions) == 12
    keys = [row["key"] for row, _ in predictions]
    assert keys == sorted(films.column("key").tolist())
    for index, (row, p8) in enumerate(predictions):
        original = films.column("key").tolist().index(row["key"])
        assert p8.dtype == np.uint8
        np.testing.assert_array_equal(p8, maps[original])
        np.testing.assert_array_equal(predictions.p8(index), p8)


def test_rows_are_usable_without_their_shards(films: Shards, shapes: Shards, folder: Path, tmp_path: Path) -> None:
    predictions = Predictions(folder)
    for index, row in enumerate(predictions.rows):
        original = films.column("key").tolist().index(row["key"])
        assert row["rle"] == films.column("rle")[original] and row["fold"] == films.column("fold")[original]
        assert predictions.grid(index) == films.grid(original)
    empty = encode_map(np.zeros((64, 64), np.uint8))
    rows = write_block(tmp_path / "padded" / "pred-00000.tar", [(film_facts(shapes, 0), empty)])
    write_table(tmp_path / "padded", rows, {})
    assert Predictions(tmp_path / "padded").grid(0) == shapes.grid(0)
    assert shapes.grid(0).padding.top == 10


def test_tar_holds_plain_png_and_equal_input_gives_equal_bytes(
    films: Shards, maps: list[Map], folder: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.tar"
    write_block(again, [(film_facts(films, index), encode_map(maps[index])) for index in (0, 1, 2, 3, 4)])
    assert again.read_bytes() == (folder / "pred-00001.tar").read_bytes()
    with tarfile.open(again) as archive:
        assert [member.name for member in archive] == [f"{films.column('key')[i]}.p8.png" for i in range(5)]


def test_flipped_bit_in_a_map_is_noticed_and_named(folder: Path) -> None:
    row = Predictions(folder).rows[3]
    flip_bit(folder / row["tar"], row["offset"] + row["size"] // 2)
    predictions = Predictions(folder)
    with pytest.raises(CorruptSample, match=rf"{row['tar']}.*{row['key']}"):
        predictions.p8(3)
    predictions.p8(4)


def test_changed_table_is_noticed_by_its_digest(folder: Path) -> None:
    flip_bit(folder / TABLE)
    with pytest.raises(InputError, match="digest"):
        Predictions(folder)


def test_unfinished_predictions_are_an_input_error(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with pytest.raises(InputError, match="predict"):
        Predictions(folder)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": "other"}', '{"format": "pneumo_dist-predictions", "format_version": 99}']
)
def test_damaged_or_foreign_manifest_is_an_input_error(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json"):
        Predictions(folder)


def test_missing_table_is_an_input_error(folder: Path) -> None:
    (folder / TABLE).unlink()
    with pytest.raises(InputError, match="predict"):
        Predictions(folder)


def test_whole_maps_are_distinguished_from_damaged_and_missing_ones(folder: Path) -> None:
    rows = Predictions(folder).rows
    first = [row for row in rows if row["tar"] == "pred-00000.tar"]
    assert is_whole(folder, rows) and len(first) == 7
    tar = folder / "pred-00001.tar"
    truncate_to = min(row["offset"] for row in rows if row["tar"] == tar.name) + 5
    tar.write_bytes(tar.read_bytes()[:truncate_to])
    assert is_whole(folder, first) and not is_whole(folder, rows)
    tar.unlink()
    assert not is_whole(folder, rows)


def test_no_films_are_an_input_error(folder: Path, tmp_path: Path) -> None:
    assert len(open_predictions(folder)) == 12
    write_table(tmp_path / "none", [], {"experiment": "exp"})
    with pytest.raises(InputError, match="none: holds no films; predict again"):
        open_predictions(tmp_path / "none")


def test_digest_exists_for_finished_predictions_only(folder: Path, tmp_path: Path) -> None:
    assert stored_digest(folder) == Predictions(folder).digest
    assert stored_digest(tmp_path / "nowhere") is None


def edited(folder: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Change the rows of stored predictions and update their digest."""
    table = pq.read_table(folder / TABLE)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / TABLE)
    resign(folder, TABLE, "predictions_sha256")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows.clear(), "0 rows, but the manifest has 12 films"),
        (lambda rows: rows.append(rows[0]), "13 rows"),
        (lambda rows: rows.__setitem__(1, rows[0]), "12 films with one row each"),
        (lambda rows: rows[2].update(split="all"), "2.split"),
    ],
)
def test_rows_that_no_prediction_writes_are_refused(folder: Path, change: Callable[..., Any], reason: str) -> None:
    edited(folder, change)
    with pytest.raises(InputError, match=rf"predictions\.parquet: .*{reason}.*; predict again"):
        Predictions(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("films", -1), ("predictions_sha256", "x")],
)
def test_manifest_that_no_prediction_writes_is_refused(folder: Path, key: str, value: Any) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**content, key: value}))
    with pytest.raises(InputError, match=rf"manifest\.json: damaged at {key}"):
        Predictions(folder)


@pytest.mark.parametrize("shape", [(8192, 8192), (64, 32), (32, 32), None])
def test_map_of_another_size_is_not_decoded(folder: Path, shape: tuple[int, int] | None) -> None:
    content = b"no picture" if shape is None else encode_image(np.zeros(shape, np.uint8), settings=PNG)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "image_size": 64}))
    (folder / "pred-00009.tar").write_bytes(content)

    def change(rows: list[dict[str, Any]]) -> None:
        rows[3] |= {"tar": "pred-00009.tar", "offset": 0, "size": len(content), "crc32": zlib.crc32(content)}

    edited(folder, change)
    predictions = Predictions(folder)
    with pytest.raises(InputError, match=r"pred-00009\.tar: the p8 of .* is not a map of the manifest's size"):
        predictions.p8(3)


def test_invalid_label_is_named(folder: Path) -> None:
    edited(folder, lambda rows: rows[3].update(rle="1 2 3"))
    predictions = Predictions(folder)
    with pytest.raises(InputError, match=rf"the label of {predictions.rows[3]['key']}: RLE has an odd count"):
        predictions.label(3)
