"""Fixtures of the tests of shards: small films, a built dataset, naive references, and the command line in process."""

import csv
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from shards import console
from shards.__main__ import app
from shards.build.assemble import BuildSummary
from shards.build.build import build
from shards.build.films import FilmFolders, LabelFiles
from shards.build.options import BuildOptions, Execution
from shards.build.sources import find_sources
from shards.phantom.dataset import synthesize

SALT = b"a salt for the tests only"
OPTIONS = BuildOptions(image_size=64, folds=3, holdout=0.2, seed=1, samples_per_shard=8)

Mask = npt.NDArray[np.uint8]
Tree = dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command line."""

    code: int
    out: str
    err: str

    def only_line(self) -> str:
        """Return the only line on stderr of a command that refused its input."""
        assert self.code == 2, (self.code, self.err)
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


@dataclass(frozen=True)
class Inputs:
    """Arguments of a build, as the command line collects them."""

    dicom: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    masks: Path | None = None
    rle: Path | None = None
    test_dicom: tuple[Path, ...] = ()
    test_images: tuple[Path, ...] = ()
    options: BuildOptions = field(default_factory=lambda: OPTIONS)

    def build(self, out: Path, **more: Any) -> BuildSummary:
        sources = find_sources(
            FilmFolders(dicom=self.dicom, images=self.images, test_dicom=self.test_dicom, test_images=self.test_images),
            LabelFiles(self.rle, masks=self.masks),
        )
        salt, on_film = more.pop("salt", SALT), more.pop("on_film", None)
        summary = build(sources, out, self.options, salt, Execution(**more), on_film)
        assert summary is not None
        return summary


@dataclass(frozen=True)
class FilmSet:
    """Synthetic films: 30 for training, one of them (`unlabelled`) without a row in the CSV, and four test films."""

    dicom: Path
    labels: Path
    test_dicom: Path
    unlabelled: str
    rles: Mapping[str, list[str]]

    def inputs(self, options: BuildOptions = OPTIONS) -> Inputs:
        return Inputs(dicom=(self.dicom,), rle=self.labels, test_dicom=(self.test_dicom,), options=options)


def naive_decode(rles: list[str], height: int, width: int) -> Mask:
    """The union of relative run-length strings, pixel by pixel, by the competition's definition."""
    mask = np.zeros((height, width), np.uint8)
    for rle in rles:
        if rle.strip() == "-1":
            continue
        numbers = [int(token) for token in rle.split()]
        position = 0
        for skip, length in zip(numbers[0::2], numbers[1::2], strict=True):
            position += skip
            for pixel in range(position, position + length):
                mask[pixel % height, pixel // height] = 1
            position += length
    return mask


def naive_encode(mask: Mask) -> str:
    """The competition's string of a mask, pixel by pixel."""
    numbers: list[int] = []
    height, width = mask.shape
    gap = run = 0
    for x in range(width):
        for y in range(height):
            if mask[y, x]:
                run += 1
            else:
                if run:
                    numbers += [gap, run]
                    gap = run = 0
                gap += 1
    if run:
        numbers += [gap, run]
    return " ".join(str(number) for number in numbers) or "-1"


def tree_of(folder: Path) -> Tree:
    """Every file below a folder, including hidden ones, with its digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_film(path: Path, pixels: npt.NDArray[Any], **attributes: Any) -> Path:
    """Write an uncompressed one-frame DICOM file; attributes override or add elements, None removes one."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film = Dataset()
    film.file_meta = meta
    film.SOPClassUID, film.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    bits = pixels.dtype.itemsize * 8
    film.SamplesPerPixel, film.PhotometricInterpretation = (3, "RGB") if pixels.ndim == 3 else (1, "MONOCHROME2")
    if pixels.ndim == 3:
        film.PlanarConfiguration = 0
    film.Rows, film.Columns = pixels.shape[:2]
    film.BitsAllocated = film.BitsStored = bits
    film.HighBit, film.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
    film.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        if value is None:
            delattr(film, name)
        else:
            setattr(film, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, film, enforce_file_format=True)
    return path


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """The rows of a label CSV with a header, read without the code under test."""
    with path.open(newline="", encoding="utf-8-sig") as stream:
        return [(first.strip(), second.strip()) for first, second in list(csv.reader(stream))[1:]]


@pytest.fixture(scope="session", name="naive_decode")
def _naive_decode() -> Callable[[list[str], int, int], Mask]:
    return naive_decode


@pytest.fixture(scope="session", name="naive_encode")
def _naive_encode() -> Callable[[Mask], str]:
    return naive_encode


@pytest.fixture(scope="session", name="tree_of")
def _tree_of() -> Callable[[Path], Tree]:
    return tree_of


@pytest.fixture(scope="session", name="write_film")
def _write_film() -> Callable[..., Path]:
    return write_film


@pytest.fixture(scope="session", name="Inputs")
def _inputs() -> type[Inputs]:
    return Inputs


@pytest.fixture(scope="session")
def film_set(tmp_path_factory: pytest.TempPathFactory) -> FilmSet:
    root = tmp_path_factory.mktemp("films")
    made = synthesize(root / "train", images=30, size=64, positive_rate=0.5, seed=3)
    test = synthesize(root / "test", images=4, size=64, positive_rate=0.5, seed=9)
    pairs = read_pairs(made.labels_csv)
    unlabelled = pairs[-1][0]
    kept = [pair for pair in pairs if pair[0] != unlabelled]
    made.labels_csv.write_text("\n".join(["ImageId, EncodedPixels", *(f"{i}, {r}" for i, r in kept)]) + "\n")
    rles: dict[str, list[str]] = {}
    for image_id, rle in kept:
        rles.setdefault(image_id, []).append(rle)
    assert any(len(rows) > 1 for rows in rles.values())
    return FilmSet(made.dicom_dir, made.labels_csv, test.dicom_dir, unlabelled, rles)


@pytest.fixture(scope="session")
def dataset(film_set: FilmSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 29 labelled and four test films in five shards. Do not write into it."""
    out = tmp_path_factory.mktemp("dataset") / "shards"
    film_set.inputs().build(out)
    return out


@pytest.fixture
def own_dataset(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, which a test may damage."""
    return Path(shutil.copytree(dataset, tmp_path / "shards"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(*argv: object) -> Outcome:
        capsys.readouterr()
        code = console.run(app, "python -m shards", [str(argument) for argument in argv])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real films for local tests; they are never part of the project."""
    default = Path(__file__).parents[2] / "../shared/data"
    folder = Path(os.environ.get("PNEUMO_REAL_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip("no real films here: point PNEUMO_REAL_DATA at their folder")
    return folder
