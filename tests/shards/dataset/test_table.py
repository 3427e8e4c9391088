"""The sample table and the reader of samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.dataset.grid import Padding
from shards.dataset.table import SCHEMA, LabelGrid, Shards


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


def test_columns_are_arrays_of_the_tables_length(dataset: Path) -> None:
    shards = Shards(dataset)
    columns: list[npt.NDArray[Any]] = [shards.column(name) for name in SCHEMA.names]
    assert {len(column) for column in columns} == {len(shards)} == {33}
    assert np.issubdtype(shards.column("image_crc32").dtype, np.integer)
