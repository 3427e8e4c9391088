"""Stored maps as labels: exactly those of the unlabelled films, found by row."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from pneumo_dist.maps.labels import MapLabels, labels_folder
from pneumo_dist.maps.store import Predictions, encode_map, film_facts, write_block, write_table
from pneumo_dist.scoring.arrays import Map
from shards.dataset.table import Shards
from shards.errors import InputError


def map_of(row: int) -> Map:
    return np.random.default_rng(row).integers(0, 256, (32, 32), np.uint8)


def stored(shards: Shards, folder: Path, rows: list[int], side: int = 32) -> Predictions:
    films = [({**film_facts(shards, row), "class_probability": None}, encode_map(map_of(row))) for row in rows]
    parts = [write_block(folder / f"pred-{number:05d}.tar", part) for number, part in enumerate((films[:4], films[4:]))]
    write_table(folder, [row for part in parts for row in part], {"split": "unlabelled", "image_size": side})
    return Predictions(folder)


@pytest.fixture
def rows(half_labelled: Shards) -> list[int]:
    return [int(row) for row in half_labelled.unlabelled_rows(0)]


def test_maps_are_found_by_row_also_after_pickling(half_labelled: Shards, tmp_path: Path, rows: list[int]) -> None:
    predictions = stored(half_labelled, tmp_path, rows[::-1])
    labels = MapLabels.of(predictions, half_labelled, np.array(rows))
    for each in (labels, pickle.loads(pickle.dumps(labels))):
        for row in rows:
            np.testing.assert_array_equal(each.p8(row), map_of(row))


def test_film_without_a_map_is_refused(half_labelled: Shards, tmp_path: Path, rows: list[int]) -> None:
    predictions = stored(half_labelled, tmp_path, rows[1:])
    key = half_labelled.text(rows[0], "key")
    with pytest.raises(InputError, match=rf"has no map of {key}, a film of .*; predict again with --split unlabelled$"):
        MapLabels.of(predictions, half_labelled, np.array(rows))


def test_map_of_another_size_is_refused(half_labelled: Shards, tmp_path: Path, rows: list[int]) -> None:
    labels = MapLabels.of(stored(half_labelled, tmp_path, rows, side=64), half_labelled, np.array(rows))
    with pytest.raises(InputError, match="is not a map of the manifest's size; predict again"):
        labels.p8(rows[0])


def test_folder_is_that_of_an_experiments_stage_or_of_an_ensemble() -> None:
    runs = Path("runs")
    assert labels_folder(runs, "seunet/main", "unlabelled", 3) == runs / "seunet/unlabelled/main/fold3/predictions"
    assert labels_folder(runs, "blend", "train", 0) == runs / "blend/train/fold0/predictions"
