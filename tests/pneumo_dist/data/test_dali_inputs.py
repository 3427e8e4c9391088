"""The table of the graph's inputs: names for what the graph needs, and values of the types that it declares."""

from typing import Any

import numpy as np
import pytest
from dali_films import RECIPE

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.data import dali_inputs
from pneumo_dist.data.films import FilmReader, FilmRequest, InputSpec
from pneumo_dist.data.geometry import coarse_map, matrix
from pneumo_dist.data.resample import noise_window
from shards.dataset.table import Shards

DISTORTED: dict[str, Any] = {**RECIPE, "distortion": {"p": 0.5}}


def reader_of(
    films: Shards, recipe: dict[str, Any] | None, device_id: int | None = None, with_mask: bool = True
) -> FilmReader:
    augment = None if recipe is None else AugmentConfig.model_validate(recipe)
    return FilmReader(films, InputSpec(64, 1, DataConfig(), device_id), with_mask, augment, seed=3)


@pytest.mark.parametrize(
    ("recipe", "device_id", "with_mask", "names"),
    [
        (None, None, False, ["warp", "image"]),
        (None, 0, True, ["warp", "image", "mask"]),
        (RECIPE, None, True, ["warp", "tone", "noise", "image", "mask"]),
        (DISTORTED, None, True, ["warp", "tone", "noise", "coarse_map", "image", "mask"]),
        ({**RECIPE, "border": "reflect"}, None, True, ["warp", "tone", "noise", "image", "mask"]),
        ({**RECIPE, "border": "reflect"}, 0, True, ["warp", "tone", "noise", "coarse_map", "image", "mask"]),
        ({**RECIPE, "border": "reflect_101"}, 0, True, ["warp", "tone", "noise", "coarse_map", "image", "mask"]),
    ],
)
def test_inputs_are_those_that_the_augmentation_and_the_device_need(
    films: Shards, recipe: dict[str, Any] | None, device_id: int | None, with_mask: bool, names: list[str]
) -> None:
    reader = reader_of(films, recipe, device_id, with_mask)
    assert [row.name for row in dali_inputs.input_table(reader)] == names


@pytest.mark.parametrize("device_id", [None, 0])
def test_values_have_the_declared_types_and_are_those_of_the_film(films: Shards, device_id: int | None) -> None:
    reader = reader_of(films, DISTORTED, device_id)
    table = dali_inputs.input_table(reader)
    empty = {"noise": 0, "coarse_map": 0}
    for request in [FilmRequest(row, epoch, 0) for row in range(4) for epoch in range(4)]:
        values = dali_inputs.graph_inputs(table, reader, request)
        film = {row.name: value for row, value in zip(table, values, strict=True)}
        for row in table:
            assert film[row.name].dtype == row.dtype and film[row.name].ndim == row.ndim, row.name
        drawn, stored = reader.parameters(request), reader.stored(request)
        np.testing.assert_array_equal(film["warp"], matrix(drawn.geometry, 64, stored).astype(np.float32))
        noise = noise_window(drawn, 64)[..., None] if drawn.noise_sigma else dali_inputs.NO_NOISE
        np.testing.assert_array_equal(film["noise"], noise)
        is_needed = drawn.geometry.warp is not None or device_id is not None
        nodes = coarse_map(drawn.geometry, 64, stored) if is_needed else dali_inputs.NO_COARSE_MAP
        np.testing.assert_array_equal(film["coarse_map"], nodes)
        assert film["tone"][3] == drawn.clahe and film["tone"][2] == np.float32(drawn.gamma)
        for name, content in zip(reader.members, reader.read(request), strict=True):
            np.testing.assert_array_equal(film[name], content)
        empty = {name: count + (film[name].size == 0) for name, count in empty.items()}
    assert 0 < empty["noise"] < 16 and (empty["coarse_map"] > 0) == (device_id is None)
