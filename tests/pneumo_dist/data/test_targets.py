"""Targets of films with and without labels: the same for both loaders, and augmented like their images."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.data.augment import IDENTITY, Parameters
from pneumo_dist.data.films import FilmReader, FilmRequest, InputSpec
from pneumo_dist.data.geometry import Geometry
from pneumo_dist.data.loader import make_batches
from pneumo_dist.data.targets import _map, target
from pneumo_dist.maps.labels import MapLabels, SoftLabels
from pneumo_dist.maps.store import Predictions, encode_map, film_facts, write_block, write_table
from shards.dataset.table import Shards
from shards.errors import InputError

STRONG = AugmentConfig.model_validate(
    {"hflip": 0.5, "shift_scale_rotate": {"p": 0.7}, "distortion": {"p": 0.5}, "random_resized_crop": {"p": 0.3}}
)
SIDE = 48


def map_of(number: int) -> np.ndarray[Any, Any]:
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6), np.uint8)
    return np.asarray(cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR), np.uint8)


@pytest.fixture
def maps(half_labelled: Shards, tmp_path: Path) -> MapLabels:
    """A smooth map of 48 x 48 pixels for each film without a label."""
    rows = half_labelled.unlabelled_rows(0)
    films = [({**film_facts(half_labelled, row), "class_probability": None}, encode_map(map_of(row))) for row in rows]
    write_table(tmp_path, write_block(tmp_path / "pred-00000.tar", films), {"split": "unlabelled", "image_size": SIDE})
    return MapLabels.of(Predictions(tmp_path), half_labelled, rows)


def reader_of(shards: Shards, maps: MapLabels | None, loader: str = "torch", size: int = 64, **soft: Any) -> FilmReader:
    data = DataConfig.model_validate({"loader": loader, "threads": 1})
    labels = SoftLabels(maps, **soft)
    return FilmReader(shards, InputSpec(size, 1, data), True, STRONG, seed=3, has_targets=True, maps=labels)


def test_target_of_a_label_is_the_mask_of_other_stages(half_labelled: Shards, maps: MapLabels) -> None:
    reader = reader_of(half_labelled, maps)
    plain = FilmReader(half_labelled, reader.input_spec, True, STRONG, seed=3)
    requests = [FilmRequest(row, epoch, 0) for row in range(12) for epoch in range(3)]
    (batch,) = make_batches(plain, [requests], len(requests))
    found = [target(reader, request, reader.parameters(request)) for request in requests]
    np.testing.assert_array_equal(np.stack(found), 255 * batch.masks[:, 0].numpy())
    assert batch.masks.any()


@pytest.mark.parametrize("flip", [False, True])
def test_target_of_a_map_is_the_map_at_the_networks_size(half_labelled: Shards, maps: MapLabels, flip: bool) -> None:
    row = int(maps.rows[3])
    parameters = Parameters(Geometry(flip=flip))
    whole = target(reader_of(half_labelled, maps, size=SIDE * 2), FilmRequest(row, 0, 0), parameters)
    expected = cv2.resize(map_of(row), (SIDE * 2, SIDE * 2), interpolation=cv2.INTER_LINEAR)
    expected = expected[:, ::-1] if flip else expected
    # Beyond the centres of the outermost pixels the border is black, as for images.
    inside = np.s_[2:-2, 2:-2]
    np.testing.assert_allclose(whole[inside].astype(int), expected[inside].astype(int), atol=2)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_teachers_map_takes_its_share_of_a_label(half_labelled: Shards, tmp_path: Path, share: float) -> None:
    facts = [{**film_facts(half_labelled, row), "class_probability": None} for row in range(12)]
    films = [(each, encode_map(map_of(row))) for row, each in enumerate(facts)]
    write_table(tmp_path, write_block(tmp_path / "pred-00000.tar", films), {"split": "train", "image_size": SIDE})
    teacher = MapLabels.of(Predictions(tmp_path), half_labelled, np.arange(12))
    plain, pure = reader_of(half_labelled, None), reader_of(half_labelled, teacher)
    taught = reader_of(half_labelled, None, teacher=teacher, share=share)
    for row in (1, 5, 9):
        request = FilmRequest(row, 2, 0)
        parameters = plain.parameters(request)
        mask = target(plain, request, parameters).astype(float)
        level = _map(teacher, pure, request, parameters).astype(float)
        expected = np.rint((1 - share) * mask + share * level)
        np.testing.assert_array_equal(target(taught, request, parameters), expected)
        assert share == 0.0 or not np.array_equal(expected, mask)


def test_film_without_label_and_map_has_an_empty_target(half_labelled: Shards) -> None:
    assert not target(reader_of(half_labelled, None), FilmRequest(15, 0, 0), IDENTITY).any()


def test_loaders_give_the_same_targets(half_labelled: Shards, maps: MapLabels) -> None:
    pytest.importorskip("nvidia.dali")
    requests = [[FilmRequest(row, epoch, 0) for row in (1, 12, 5, 17)] for epoch in range(4)]
    found = {}
    for loader in ("dali", "torch"):
        batches = list(make_batches(reader_of(half_labelled, maps, loader), requests, 4))
        found[loader] = torch.cat([batch.masks for batch in batches])
        assert [batch.indices.tolist() for batch in batches] == [[1, 12, 5, 17]] * 4
        assert found[loader].dtype == torch.uint8 and found[loader].shape == (16, 1, 64, 64)
    assert torch.equal(found["dali"], found["torch"])
    levels = found["torch"].view(4, 4, -1)[:, [1, 3]].unique()
    assert len(levels) > 50


def test_synthetic_targets_reach_255(half_labelled: Shards) -> None:
    (batch,) = make_batches(reader_of(half_labelled, None, "synthetic"), [[FilmRequest(0)]], 1)
    assert batch.masks.unique().tolist() == [0, 255]


def test_damaged_map_is_named(half_labelled: Shards, maps: MapLabels) -> None:
    row = int(maps.rows[2])
    tar = maps.folder / maps.tars[2]
    content = bytearray(tar.read_bytes())
    content[int(maps.places[2, 0]) + 20] ^= 1
    tar.write_bytes(content)
    for loader in ("dali", "torch"):
        with pytest.raises(InputError, match=rf"pred-00000.tar: the p8 of {maps.keys[2]} does not match its CRC32"):
            list(make_batches(reader_of(half_labelled, maps, loader), [[FilmRequest(row, 0, 0)]], 1))
