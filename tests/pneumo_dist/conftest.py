"""Tiny datasets, built once: phantom films, shapes that equal their masks, and damaged copies."""

import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from builders import SALT, phantom_shards
from edited_dataset import resign
from tiny_runs import Trained, make

from pneumo_dist.doctor.probes import Crash, DaliFacts, TorchFacts, dali_facts, torch_facts
from shards.build.build import build
from shards.build.films import FilmFolders, LabelFiles
from shards.build.options import BuildOptions
from shards.build.sources import find_sources
from shards.dataset.table import TABLE, Shards, save_table
from shards.phantom.dataset import synthesize


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Twelve phantom films of 96 x 96 pixels in two folds."""
    return phantom_shards(tmp_path_factory.mktemp("films"), samples_per_shard=5)


@pytest.fixture(scope="session")
def half_labelled(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Twelve phantom films of 64 x 64 pixels in two folds, and ten of other patients without labels."""
    folder = tmp_path_factory.mktemp("half_labelled")
    made = synthesize(folder / "synth", images=12, size=64, positive_rate=0.5, seed=3)
    more = synthesize(folder / "more", images=10, size=64, positive_rate=0.5, seed=5)
    folders = FilmFolders(dicom=[made.dicom_dir], unlabelled_dicom=[more.dicom_dir])
    build(
        find_sources(folders, LabelFiles(made.labels_csv)),
        folder / "shards",
        BuildOptions(image_size=64, folds=2),
        SALT,
    )
    return Shards(folder / "shards")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Four lopsided white shapes of 60 x 80 pixels, each equal to its mask."""
    folder = tmp_path_factory.mktemp("shapes")
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
        for number in range(4):
            shape = np.zeros((60, 80), np.uint8)
            cv2.rectangle(shape, (12 + 2 * number, 20), (60, 38), 255, -1)
            cv2.circle(shape, (58, 30 + number), 11, 255, -1)
            assert cv2.imwrite(str(folder / kind / f"shape{number}.png"), shape)
    sources = find_sources(FilmFolders(images=[folder / "images"]), LabelFiles(masks=folder / "masks"))
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


@pytest.fixture(scope="session")
def jpeg_films(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Four JPEG films of three sizes, each with a mask."""
    folder = tmp_path_factory.mktemp("jpeg_films")
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for number, shape in enumerate([(96, 96), (128, 96), (96, 130), (120, 70)]):
        noise = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
        film = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 5), noise, 0, 255, cv2.NORM_MINMAX)
        mask = np.zeros(shape, np.uint8)
        cv2.ellipse(mask, (shape[1] // 3, shape[0] // 2), (20, 33), 20, 0, 360, 255, -1)
        assert cv2.imwrite(str(folder / f"images/film{number}.png"), film)
        assert cv2.imwrite(str(folder / f"masks/film{number}.png"), mask)
    sources = find_sources(FilmFolders(images=[folder / "images"]), LabelFiles(masks=folder / "masks"))
    options = BuildOptions(image_size=96, folds=2, codec="jpeg", duplicate_distance=None)
    build(sources, folder / "shards", options, SALT)
    return Shards(folder / "shards")


@pytest.fixture(scope="session")
def real_films(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Ten real films, five of them positive. They are not part of the project."""
    default = Path(__file__).parents[2] / "../shared/data"
    sample = Path(os.environ.get("PNEUMO_REAL_DATA", default)).resolve() / "siim_sample"
    if not sample.is_dir():
        pytest.skip("no real films here: point PNEUMO_REAL_DATA at their folder")
    table = sample / "train-rle-sample.csv"
    sources = find_sources(FilmFolders(dicom=[sample]), LabelFiles(table))
    folder = tmp_path_factory.mktemp("real_films")
    build(sources, folder, BuildOptions(image_size=256, folds=2), SALT)
    return Shards(folder)


@pytest.fixture
def rewritten(films: Shards, tmp_path: Path) -> Callable[[int, str, Callable[[bytes], bytes]], Shards]:
    """Copies the films with other bytes in one member, at most as many as before, and their CRC32."""

    def rewrite(row: int, member: str, change: Callable[[bytes], bytes]) -> Shards:
        folder = Path(shutil.copytree(films.folder, tmp_path / "rewritten"))
        tar = folder / str(films.column("shard")[row])
        offset, size = (int(films.column(f"{member}_{what}")[row]) for what in ("offset", "size"))
        content = bytearray(tar.read_bytes())
        bytes_of_member = change(bytes(content[offset : offset + size]))
        assert len(bytes_of_member) <= size
        content[offset : offset + len(bytes_of_member)] = bytes_of_member
        tar.write_bytes(content)
        table = films.table
        for what, value in (("size", len(bytes_of_member)), ("crc32", zlib.crc32(bytes_of_member))):
            place = table.schema.get_field_index(f"{member}_{what}")
            values = table[place].to_pylist()
            values[row] = value
            table = table.set_column(place, table.schema.field(place), pa.array(values, pa.int64()))
        save_table(folder / TABLE, table)
        resign(folder)
        return Shards(folder)

    return rewrite


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two small experiments on two folds; tests that change a run copy it first."""
    return make(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def real_torch() -> TorchFacts | Crash:
    """The result of probing torch on this machine, once."""
    return torch_facts(cpu=True)


@pytest.fixture(scope="session")
def real_dali() -> DaliFacts | Crash:
    """The result of probing DALI on this machine, once."""
    return dali_facts(on_gpu=False)
