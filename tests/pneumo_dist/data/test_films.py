"""Batches of films: the same for every loader and codec, apart from rounding."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pneumo_dist.config.experiment import DataConfig, StageConfig
from pneumo_dist.data.films import Batch, InputSpec
from pneumo_dist.data.loader import eval_loader
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
