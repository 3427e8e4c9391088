"""Tiny datasets, built once: phantom films, and shapes that are their own masks."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.build import BuildOptions, build
from shards.labels import load_labels
from shards.phantom import synthesize
from shards.sources import find_sources
from shards.table import Shards

SALT = b"a salt for tests only"


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Twelve phantom films of 96 x 96 pixels in two folds."""
    folder = tmp_path_factory.mktemp("films")
    made = synthesize(folder / "synth", images=12, size=96, positive_rate=0.5, seed=3)
    labels = load_labels(made.labels_csv)
    sources = find_sources([made.dicom_dir], [], None, labels, made.labels_csv, [], [])
    build(sources, folder / "shards", BuildOptions(image_size=96, folds=2, samples_per_shard=5), SALT)
    return Shards(folder / "shards")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Four lopsided white shapes of 60 x 80 pixels, each of them its own mask."""
    folder = tmp_path_factory.mktemp("shapes")
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
        for number in range(4):
            shape = np.zeros((60, 80), np.uint8)
            cv2.rectangle(shape, (12 + 2 * number, 20), (60, 38), 255, -1)
            cv2.circle(shape, (58, 30 + number), 11, 255, -1)
            assert cv2.imwrite(str(folder / kind / f"shape{number}.png"), shape)
    sources = find_sources([], [folder / "images"], folder / "masks", None, None, [], [])
    build(sources, folder / "shards", BuildOptions(image_size=80, folds=2), SALT)
    return Shards(folder / "shards")


@pytest.fixture
def damaged(films: Shards, tmp_path: Path) -> tuple[Shards, str, str]:
    """A copy of the films with one flipped bit in one image, the shard's name and the film's key."""
    for path in films.folder.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    row = 7
    shard, key = str(films.column("shard")[row]), str(films.column("key")[row])
    content = bytearray((tmp_path / shard).read_bytes())
    content[int(films.column("image_offset")[row]) + int(films.column("image_size")[row]) // 2] ^= 4
    (tmp_path / shard).write_bytes(content)
    return Shards(tmp_path), shard, key
