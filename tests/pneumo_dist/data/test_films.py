"""Batches of films: the same for every loader and codec, apart from rounding."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.films import EMPTY_MASK, Batch, FilmReader, FilmRequest, InputSpec
from pneumo_dist.data.loader import eval_loader, make_batches
from pneumo_dist.data.resample import BORDERS
from shards.build.build import build
from shards.build.films import FilmFolders, LabelFiles
from shards.build.options import BuildOptions
from shards.build.sources import find_sources
from shards.dataset.table import Shards


def first_batch(films: Shards, loader: str, dtype: str, channels_last: bool = False) -> Batch:
    stage = StageConfig(name="x", image_size=64, eval_batch=3)
    data = DataConfig.model_validate({"loader": loader, "image_dtype": dtype, "channels_last": channels_last})
    rows = films.indices("train")[:3]
    (batch,) = eval_loader(films, rows, stage, InputSpec(64, 3, data), 0, 1, with_mask=True)
    return batch


@pytest.mark.parametrize("loader", ["dali", "torch", "synthetic"])
def test_half_precision_differs_by_its_rounding_alone(films: Shards, loader: str) -> None:
    whole, half = (first_batch(films, loader, dtype) for dtype in ("float32", "float16"))
    assert (whole.images.dtype, half.images.dtype) == (torch.float32, torch.float16)
    assert half.masks.dtype == torch.uint8
    torch.testing.assert_close(half.images.float(), whole.images, rtol=1e-3, atol=1e-3)
    assert not torch.equal(half.images.float(), whole.images)


@pytest.mark.parametrize("loader", ["dali", "torch", "synthetic"])
def test_channels_last_holds_the_same_values(films: Shards, loader: str) -> None:
    plain, last = (first_batch(films, loader, "float32", channels_last) for channels_last in (False, True))
    assert last.images.is_contiguous(memory_format=torch.channels_last)
    assert plain.images.is_contiguous()
    torch.testing.assert_close(last.images, plain.images, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(96, 96), (128, 96), (96, 130)])
def test_jpeg_and_png_shards_give_the_same_batch(tmp_path: Path, shape: tuple[int, int]) -> None:
    (tmp_path / "films").mkdir()
    rows = []
    for number in range(4):
        random = np.random.default_rng(number)
        film = cv2.GaussianBlur(random.integers(0, 256, shape, np.uint8), (0, 0), 6)
        cv2.imwrite(str(tmp_path / f"films/film{number}.png"), cv2.normalize(film, film, 0, 255, cv2.NORM_MINMAX))
        rows.append(f"film{number},{shape[0] * 20 + 10} 40 {shape[0] - 40} 40 {shape[0] - 40} 40 {shape[0] - 40} 40")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    sources = find_sources(FilmFolders(images=(tmp_path / "films",)), LabelFiles(tmp_path / "labels.csv"))
    seen = {}
    for codec in ("png", "jpeg"):
        options = BuildOptions(image_size=max(shape), folds=2, codec=codec, duplicate_distance=None)
        build(sources, tmp_path / codec, options, b"a salt")
        shards = Shards(tmp_path / codec)
        stage = StageConfig(name="x", image_size=96, eval_batch=4)
        films = shards.indices("train")
        (batch,) = eval_loader(shards, films, stage, InputSpec(96, 1, DataConfig()), 0, 1, with_mask=True)
        seen[codec] = batch
    scale = 255 * DataConfig().std[0]
    difference = (seen["png"].images - seen["jpeg"].images).abs().mean() * scale
    assert difference < 2, "grey levels on average"
    both = seen["png"].masks * seen["jpeg"].masks
    either = (seen["png"].masks + seen["jpeg"].masks).clamp(max=1)
    assert seen["png"].masks.sum() > 0
    assert both.sum() / either.sum() > 0.97


class StoredMasks(FilmReader):
    """Reads every mask, whether it is empty or not."""

    def read_member(self, request: FilmRequest, member: str) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self.shards.read(request.index, member), np.uint8)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("distortion", [0.0, 1.0])
@pytest.mark.parametrize("loader", ["dali", "torch"])
def test_masks_are_those_that_are_stored_whether_empty_ones_are_read_or_not(
    films: Shards, loader: str, distortion: float, border: str
) -> None:
    augment = AugmentConfig.model_validate(
        {"border": border, "distortion": {"p": distortion}, "shift_scale_rotate": {"p": 0.7}}
    )
    input_spec = InputSpec(64, 1, DataConfig.model_validate({"loader": loader}))
    requests = [[FilmRequest(row, epoch, 0) for row in range(len(films))] for epoch in range(3)]
    seen = [
        list(make_batches(kind(films, input_spec, with_mask=True, augment=augment), iter(requests), len(films)))
        for kind in (FilmReader, StoredMasks)
    ]
    empty = films.column("mask_area") == 0
    assert empty.any() and not empty.all()
    for ours, stored in zip(*seen, strict=True):
        assert torch.equal(ours.images, stored.images) and torch.equal(ours.masks, stored.masks)
        assert not ours.masks[empty].any()
        assert ours.masks[~empty].any()


def test_empty_masks_are_not_read(films: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, str]] = []
    original = Shards.read

    def spy(shards: Shards, index: int, member: str) -> bytes:
        read.append((index, member))
        return original(shards, index, member)

    monkeypatch.setattr(Shards, "read", spy)
    reader = FilmReader(films, InputSpec(64, 1, DataConfig()), with_mask=True)
    for row in range(len(films)):
        mask = reader.read(FilmRequest(row))[1]
        is_empty = films.column("mask_area")[row] == 0
        assert np.array_equal(mask, EMPTY_MASK) == is_empty
        assert ((row, "mask") in read) == (not is_empty)


def test_mask_of_a_film_without_label_is_refused(films: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {name: films.column(name) for name in films.table.column_names}
    columns["mask_area"], columns["mask_size"] = (np.full(len(films), -1) for _ in range(2))
    monkeypatch.setattr(Shards, "column", lambda _, name: columns[name])
    with pytest.raises(AssertionError, match="has no mask"):
        FilmReader(films, InputSpec(64, 1, DataConfig()), with_mask=True).read_member(FilmRequest(0), "mask")
