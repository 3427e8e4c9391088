"""Training on crops: a crop is a part of the augmented film, in both loaders, at a place that only the film decides."""

import hashlib
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.augment import Parameters, cropped, draw
from pneumo_dist.data.elastic import InputElastic
from pneumo_dist.data.films import FilmReader, FilmRequest, InputSpec
from pneumo_dist.data.geometry import Geometry, GridSteps, Lens, Stored, coarse_map, dense_map, matrix
from pneumo_dist.data.loader import eval_batches, train_batches
from pneumo_dist.data.plan import EpochPlan, FoldSplit
from shards.dataset.table import Shards

STILL = {"hflip": 0, "shift_scale_rotate": {"p": 0}, "tone": {"p": 0}}
MOVED: dict[str, Any] = {
    "shift_scale_rotate": {"p": 1},
    "random_resized_crop": {"p": 0.5},
    "distortion": {"p": 0.8, "elastic": {"pixels": "input"}, "grid_open": True},
}
LOADERS = ["dali", "torch"]


def of_config(**config: Any) -> AugmentConfig:
    return AugmentConfig.model_validate(config)


def many(config: AugmentConfig, count: int = 300) -> list[Parameters]:
    return [draw(config, 5, number % 7, f"film{number}") for number in range(count)]


def origin(drawn: Parameters, size: int, film_size: int) -> tuple[int, int]:
    """Return the pixel of the film at which a crop starts, (x, y)."""
    x, y = (math.floor(share * (film_size - size + 1)) for share in drawn.crop_origin)
    return x, y


# -- the crop is a part of the augmented film


@pytest.mark.parametrize(("size", "film_size"), [(512, 768), (64, 96), (64, 64), (32, 1024)])
def test_a_pixel_of_a_crop_is_the_same_pixel_of_the_augmented_film(size: int, film_size: int) -> None:
    stored, pixels = Stored(300, (7, 2)), np.random.default_rng(0).uniform(0, size, (50, 2))
    for drawn in many(of_config(**{**MOVED, "distortion": {"p": 0}}), 40):
        inside, whole = (
            matrix(geometry, side, stored)
            for geometry, side in (
                (cropped(drawn, size, film_size).geometry, size),
                (drawn.geometry, film_size),
            )
        )
        expected = (pixels + origin(drawn, size, film_size)) @ whole[:, :2].T + whole[:, 2]
        np.testing.assert_allclose(pixels @ inside[:, :2].T + inside[:, 2], expected, atol=1e-9)


@pytest.mark.parametrize(
    "warp", [GridSteps((1.2, 0.8, 1, 1, 0.9), (1, 0.7, 1.1, 1, 1), is_open=True), Lens(0.3, (0.01, -0.02))]
)
def test_a_distorted_crop_is_a_part_of_the_distorted_film(warp: GridSteps | Lens) -> None:
    size, film_size, stored = 64, 128, Stored(300)
    drawn = Parameters(Geometry(angle=0.3, scale=1.1, warp=warp), crop_origin=(0.3, 0.8))
    x, y = origin(drawn, size, film_size)
    part = dense_map(coarse_map(cropped(drawn, size, film_size).geometry, size, stored), size)
    whole = dense_map(coarse_map(drawn.geometry, film_size, stored), film_size)[y : y + size, x : x + size]
    # Cells of a crop are half as large, so the two interpolate a curve at other nodes.
    assert np.abs(part - whole).max() < (4.0 if isinstance(warp, GridSteps) else 0.1)
    assert np.abs(part - whole).mean() < 0.4


@pytest.mark.parametrize(("size", "film_size"), [(512, 768), (256, 1024)])
def test_elastic_crops_move_the_film_as_far_and_as_finely_as_the_whole_film(size: int, film_size: int) -> None:
    """Deviation 3.26 px and sigma 6 px, in pixels of the film as large as the network sees it."""
    fields: list[npt.NDArray[np.float64]] = []
    for seed in range(8):
        drawn = Parameters(Geometry(warp=InputElastic(seed, 120.0, 6.0, (0.0,) * 6)), crop_origin=(0.2, 0.7))
        bent = cropped(drawn, size, film_size).geometry
        maps = [coarse_map(each, size, Stored(film_size)) for each in (bent, replace(bent, warp=None))]
        fields += list(np.moveaxis(dense_map(maps[0], size) - dense_map(maps[1], size), -1, 0).astype(np.float64))
    deviation = math.sqrt(float(np.mean([np.square(field).mean() for field in fields])))
    strain = math.sqrt(float(np.mean([np.square(np.diff(field)).mean() for field in fields])))
    assert abs(deviation / 3.26 - 1) < 0.05
    assert abs(deviation / strain / math.sqrt(2) / 6 - 1) < 0.05


def test_corners_of_an_elastic_crop_move_as_many_pixels_of_the_film() -> None:
    warp = InputElastic(1, 0.0, 6.0, (2.0, -3.0, 1.0, 3.5, -2.5, 1.5))
    drawn = Parameters(Geometry(warp=warp), crop_origin=(0.5, 0.5))
    x, y = origin(drawn, 64, 128)
    part = dense_map(coarse_map(cropped(drawn, 64, 128).geometry, 64, Stored(128)), 64)
    whole = dense_map(coarse_map(drawn.geometry, 128, Stored(128)), 128)[y : y + 64, x : x + 64]
    np.testing.assert_allclose(part, whole, atol=1e-4)


# -- where it lies


@given(st.integers(1, 12), st.integers(0, 12), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_a_crop_starts_at_a_whole_pixel_and_ends_on_the_film(size: int, more: int, x: float, y: float) -> None:
    size, film_size = 32 * size, 32 * (size + more)
    left, top, width, height = cropped(Parameters(crop_origin=(x, y)), size, film_size).geometry.crop
    for start, length in ((left, width), (top, height)):
        assert abs(start * film_size - round(start * film_size)) < 1e-9 and length * film_size == pytest.approx(size)
        assert 0 <= round(start * film_size) <= film_size - size


def test_all_positions_are_equally_likely_and_independent_of_everything_else_that_is_drawn() -> None:
    drawn = many(of_config(), 2400)
    starts = [origin(each, 3, 6) for each in drawn]
    counts = Counter(starts)
    assert set(counts) == {(x, y) for x in range(4) for y in range(4)}
    assert all(abs(count - 150) < 4 * math.sqrt(150) for count in counts.values())
    flips = Counter(start[0] for start, each in zip(starts, drawn, strict=True) if each.geometry.flip)
    assert all(abs(count - 300) < 4 * math.sqrt(300) for count in flips.values())


def test_a_crop_as_large_as_the_film_is_the_film_to_the_bit() -> None:
    for drawn in many(of_config(**MOVED)):
        assert cropped(drawn, 96, 96) == drawn


# -- in the loaders


def stage_of(**values: Any) -> StageConfig:
    return StageConfig.model_validate(
        {"name": "main", "global_batch": 4, "micro_batch": 2, "epochs": 2, "image_size": 64, **values}
    )


def spec_of(loader: str, size: int = 64) -> InputSpec:
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "threads": 1, "loader": loader}
    return InputSpec(size, 1, DataConfig.model_validate(plain))


def plan_of(shards: Shards, stage: StageConfig, world: int = 1) -> EpochPlan:
    rows = np.arange(len(shards))
    positive = shards.column("has_mask").astype(bool)
    split = FoldSplit(rows, rows[positive], rows[~positive], rows[:0], shards.column("mask_area")[positive])
    return EpochPlan(split, stage, 11, world)


@pytest.mark.parametrize("film_size", [96, 192])
@pytest.mark.parametrize("name", LOADERS)
def test_training_reads_a_window_of_the_film_that_evaluation_reads(films: Shards, name: str, film_size: int) -> None:
    """Films have 96 pixels: at 96 and 192 px all positions are multiples of a quarter, which are exact in OpenCV."""
    if name == "dali":
        pytest.importorskip("nvidia.dali")
    plan = plan_of(films, stage_of(eval_image_size=film_size, augment=STILL, epochs=1))
    reader = FilmReader(films, spec_of(name, film_size), with_mask=True)
    (whole,) = eval_batches(reader, [np.arange(len(films))], len(films))
    starts = set()
    for batch in train_batches(films, plan, spec_of(name), 0, 0, 0):
        assert batch.images.shape[-2:] == batch.masks.shape[-2:] == (64, 64)
        for row, image, mask in zip(batch.indices, batch.images, batch.masks, strict=True):
            drawn = draw(plan.stage.augment, 11, 0, films.text(int(row), "key"))
            x, y = origin(drawn, 64, film_size)
            starts.add((x, y))
            window = (..., slice(y, y + 64), slice(x, x + 64))
            assert torch.equal(image, whole.images[row][window]) and torch.equal(mask, whole.masks[row][window])
    assert len(starts) == len(films)


@pytest.mark.parametrize("name", LOADERS)
def test_crops_have_the_same_bits_on_any_number_of_ranks_and_after_a_restart(films: Shards, name: str) -> None:
    if name == "dali":
        pytest.importorskip("nvidia.dali")
    stage = stage_of(eval_image_size=96, augment=MOVED)

    def digests(world: int, start: tuple[int, int] = (0, 0)) -> dict[tuple[int, int], str]:
        """Return (film, epoch) -> SHA-256 of image and mask over all ranks."""
        plan, found = plan_of(films, stage, world), {}
        for rank in range(world):
            places = plan.micro_batches(rank, *start)
            for (epoch, _, rows), batch in zip(
                places, train_batches(films, plan, spec_of(name), rank, *start), strict=True
            ):
                for row, image, mask in zip(rows, batch.images, batch.masks, strict=True):
                    content = image.numpy().tobytes() + mask.numpy().tobytes()
                    found[int(row), epoch] = hashlib.sha256(content).hexdigest()
        return found

    alone = digests(1)
    assert len(set(alone.values())) == len(alone) == 2 * len(films)
    assert digests(2) == alone
    rest = digests(1, (1, 1))
    assert len(rest) == 8 and rest.items() <= alone.items()


def test_without_crops_films_are_those_of_a_stage_that_does_not_know_them(films: Shards) -> None:
    reader = FilmReader(films, spec_of("torch"), True, of_config(**MOVED), 11)
    request = FilmRequest(3, 1, 0)
    assert reader.parameters(request) == draw(of_config(**MOVED), 11, 1, films.text(3, "key"))
    assert replace(reader, crop_of=96).parameters(request).geometry.crop != reader.parameters(request).geometry.crop
    assert replace(reader, crop_of=96).parameters(FilmRequest(3)) == reader.parameters(FilmRequest(3))
