"""PNG and JPEG shards of the same films look the same to the network, whatever the films' shape."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pneumo_dist.config.experiment import DataConfig, StageConfig
from pneumo_dist.data.films import InputSpec
from pneumo_dist.data.loader import eval_loader
from shards.build.build import build
from shards.build.films import FilmFolders, LabelFiles
from shards.build.options import BuildOptions
from shards.build.sources import find_sources
from shards.dataset.table import Shards


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
