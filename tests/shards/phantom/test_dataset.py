"""Synthetic datasets: SIIM layout, exact repeatability, and masks that no grey-level threshold finds."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from shards.dataset import rle
from shards.errors import InputError
from shards.phantom.dataset import PictureSummary, SynthSummary, render_film, synthesize, synthesize_pictures

IMAGES, SIZE, SEED = 60, 128, 7


@dataclass(frozen=True)
class FilmSet:
    summary: SynthSummary
    films: Mapping[str, pydicom.Dataset]
    rows: list[tuple[str, str]]
    calls: int

    def masks(self, uid: str) -> list[npt.NDArray[np.uint8]]:
        return [rle.decode(text, SIZE, SIZE) for name, text in self.rows if name == uid and text != rle.EMPTY]

    def positives(self) -> list[str]:
        return [uid for uid in self.films if self.masks(uid)]


@pytest.fixture(scope="module")
def film_set(tmp_path_factory: pytest.TempPathFactory) -> FilmSet:
    out = tmp_path_factory.mktemp("phantom") / "new" / "set"
    calls: list[None] = []
    summary = synthesize(
        out, images=IMAGES, size=SIZE, positive_rate=0.7, seed=SEED, on_film=lambda: calls.append(None)
    )
    films = {path.stem: pydicom.dcmread(path) for path in sorted(summary.dicom_dir.glob("*/*/*.dcm"))}
    lines = summary.labels_csv.read_text().splitlines()[1:]
    rows = [(uid, text) for uid, text in (line.split(", ", 1) for line in lines)]
    return FilmSet(summary, films, rows, len(calls))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_equal_arguments_give_equal_bytes_and_another_seed_other_ones(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        synthesize(tmp_path / name, images=4, size=64, positive_rate=0.5, seed=seed)
    first, second, other = (tree(tmp_path / name) for name in "abc")
    assert first == second
    assert len(first) == 5
    assert set(first) & set(other) == {"train-rle.csv"}
    assert set(first.values()).isdisjoint(other.values())


def test_a_film_depends_on_its_index_not_on_the_sets_length(tmp_path: Path) -> None:
    for name, images in (("short", 2), ("long", 5)):
        synthesize(tmp_path / name, images=images, size=64, positive_rate=1.0, seed=11)
    short, long = ({k: v for k, v in tree(tmp_path / name).items() if k.endswith(".dcm")} for name in ("short", "long"))
    assert len(short) == 2
    assert {pydicom.dcmread(tmp_path / "short" / k).pixel_array.tobytes() for k in short} == {
        pydicom.dcmread(tmp_path / "long" / k).pixel_array.tobytes() for k in short
    }
    assert set(short) < set(long)


def test_layout_is_study_series_instance(film_set: FilmSet) -> None:
    paths = sorted(film_set.summary.dicom_dir.rglob("*.dcm"))
    assert len(paths) == IMAGES == len(film_set.films)
    for path in paths:
        film = film_set.films[path.stem]
        assert path.relative_to(film_set.summary.dicom_dir).parts == (
            film.StudyInstanceUID,
            film.SeriesInstanceUID,
            f"{film.SOPInstanceUID}.dcm",
        )
        for uid in (film.StudyInstanceUID, film.SeriesInstanceUID, film.SOPInstanceUID):
            assert pydicom.uid.UID(uid).is_valid
            assert uid.startswith("1.2.826.0.1.3680043.8.498.")
    assert len({film.StudyInstanceUID for film in film_set.films.values()}) == IMAGES


def test_dicom_attributes_are_those_of_siim(film_set: FilmSet) -> None:
    for film in film_set.films.values():
        assert film.file_meta.TransferSyntaxUID == pydicom.uid.JPEGBaseline8Bit
        assert film.file_meta.MediaStorageSOPInstanceUID == film.SOPInstanceUID
        assert (film.Modality, film.BodyPartExamined, film.PhotometricInterpretation) == ("CR", "CHEST", "MONOCHROME2")
        assert (film.Rows, film.Columns, film.SamplesPerPixel) == (SIZE, SIZE, 1)
        assert (film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation) == (8, 8, 7, 0)
        assert film.ViewPosition in {"PA", "AP"}
        assert film.SeriesDescription == f"view: {film.ViewPosition}"
        assert film.PatientSex in {"M", "F"}
        assert re.fullmatch(r"[1-9]\d?", film.PatientAge)
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", film.PatientID)
        assert film.PatientName == film.PatientID
        assert [float(v) for v in film.PixelSpacing] == pytest.approx([0.143 * 1024 / SIZE] * 2, rel=1e-4)
        assert film.LossyImageCompression == "01"
        assert film.pixel_array.shape == (SIZE, SIZE)
        assert film.pixel_array.dtype == np.uint8
    assert {film.ViewPosition for film in film_set.films.values()} == {"PA", "AP"}
    assert {film.PatientSex for film in film_set.films.values()} == {"M", "F"}


def test_some_patients_have_two_or_three_films_with_one_age_and_sex(film_set: FilmSet) -> None:
    groups: dict[str, list[pydicom.Dataset]] = {}
    for film in film_set.films.values():
        groups.setdefault(film.PatientID, []).append(film)
    assert len(groups) == film_set.summary.patients
    assert 0.7 * IMAGES < len(groups) < 0.97 * IMAGES
    assert max(len(films) for films in groups.values()) in (2, 3)
    for films in groups.values():
        assert len({(film.PatientAge, film.PatientSex) for film in films}) == 1


def test_csv_form_and_counts(film_set: FilmSet) -> None:
    lines = film_set.summary.labels_csv.read_text().split("\n")
    assert lines[0] == "ImageId, EncodedPixels"
    assert lines[-1] == ""
    assert all(re.fullmatch(r"[\d.]+, (-1|\d+( \d+)+)", line) for line in lines[1:-1])
    assert len(film_set.rows) == film_set.summary.rle_rows
    assert {uid for uid, _ in film_set.rows} == set(film_set.films)
    negatives = [uid for uid, text in film_set.rows if text == rle.EMPTY]
    assert len(negatives) == len(set(negatives)) == IMAGES - 42
    assert len(film_set.positives()) == film_set.summary.positives == 42
    assert not set(negatives) & set(film_set.positives())
    assert film_set.calls == film_set.summary.films == IMAGES


def test_positives_are_spread_over_the_set(film_set: FilmSet) -> None:
    positive = set(film_set.positives())
    order = [uid in positive for uid in dict.fromkeys(uid for uid, _ in film_set.rows)]
    assert sum(a != b for a, b in itertools.pairwise(order)) >= 10


def test_about_a_third_of_positives_have_several_rows_and_some_overlap(film_set: FilmSet) -> None:
    several = [masks for uid in film_set.positives() if len(masks := film_set.masks(uid)) > 1]
    assert 0.15 < len(several) / len(film_set.positives()) < 0.55
    assert {len(masks) for masks in several} <= {2, 3}
    overlapping = [masks for masks in several if np.sum(masks, axis=0).max() > 1]
    assert 0 < len(overlapping) < len(several)


def test_csv_masks_are_those_of_the_rendered_films(film_set: FilmSet) -> None:
    uids = list(dict.fromkeys(uid for uid, _ in film_set.rows))
    positive = set(film_set.positives())
    for index, uid in enumerate(uids[:12]):
        film = render_film(np.random.default_rng([SEED, index]), SIZE, uid in positive)
        texts = [text for name, text in film_set.rows if name == uid]
        assert np.array_equal(rle.decode_union(texts, SIZE, SIZE), film.mask)
        error = film_set.films[uid].pixel_array.astype(int) - film.image
        assert np.abs(error).mean() < 3


def test_no_threshold_or_band_of_grey_levels_finds_the_pneumothorax(film_set: FilmSet) -> None:
    chosen = film_set.positives()
    masks = [np.bitwise_or.reduce(film_set.masks(uid)) for uid in chosen]
    images = [film_set.films[uid].pixel_array for uid in chosen]
    # Numbers of pixels below each of 257 levels; any band [low, high) is a difference of two columns.
    hit = np.stack([np.bincount(i[m > 0], minlength=256) for i, m in zip(images, masks, strict=True)])
    every = np.stack([np.bincount(i.ravel(), minlength=256) for i in images])
    hit, every = (np.pad(np.cumsum(counts, axis=1), ((0, 0), (1, 0))) for counts in (hit, every))
    area = np.array([m.sum() for m in masks])

    def mean_dice(low: int, high: int) -> float:
        found = every[:, high] - every[:, low]
        return float(np.mean(2 * (hit[:, high] - hit[:, low]) / (found + area)))

    assert len(chosen) >= 40
    below = max(mean_dice(0, level) for level in range(257))
    above = max(mean_dice(level, 256) for level in range(257))
    band = max(mean_dice(low, high) for low in range(0, 256, 8) for high in range(low + 8, 257, 8))
    assert max(below, above, band) < 0.25
    # The oracle must find something, or the bound above would prove nothing.
    assert below > 0.02


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"images": 0}, "images"),
        ({"size": 63}, "size"),
        ({"positive_rate": -0.01}, "positive_rate"),
        ({"positive_rate": 1.01}, "positive_rate"),
        ({"positive_rate": float("nan")}, "positive_rate"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(tmp_path: Path, change: dict[str, float], names: str) -> None:
    arguments = {"images": 2, "size": 64, "positive_rate": 0.5, "seed": 0} | change
    with pytest.raises(InputError, match=names):
        synthesize(tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_refuses_a_folder_that_is_not_empty_and_a_file_but_takes_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file"):
        with pytest.raises(InputError, match=name):
            synthesize(tmp_path / name, images=1, size=64, positive_rate=1.0, seed=0)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["kept.txt"]
    assert synthesize(tmp_path / "empty", images=1, size=64, positive_rate=1.0, seed=0).films == 1


def test_the_csv_is_written_after_the_last_film(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        synthesize(tmp_path / "out", images=2, size=64, positive_rate=0.0, seed=0, on_film=stop)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["dicom-images"]


def test_pictures_are_the_same_films_with_a_mask_each_and_their_patients(film_set: FilmSet, tmp_path: Path) -> None:
    out = tmp_path / "my"
    made = synthesize_pictures(out, images=IMAGES, size=SIZE, positive_rate=0.7, seed=SEED)
    assert made == PictureSummary(IMAGES, film_set.summary.positives, film_set.summary.patients)
    names = [f"film-{number:02d}.png" for number in range(1, IMAGES + 1)]
    assert sorted(path.name for path in (out / "images").iterdir()) == names
    rows = [line.split(",") for line in (out / "patients.csv").read_text().splitlines()]
    assert rows[0] == ["image_id", "group"] and [f"{row[0]}.png" for row in rows[1:]] == names
    assert len({row[1] for row in rows[1:]}) == made.patients
    positives = 0
    for index, name in enumerate(names):
        image, mask = (cv2.imread(str(out / kind / name), cv2.IMREAD_UNCHANGED) for kind in ("images", "masks"))
        assert image is not None and mask is not None
        film = render_film(np.random.default_rng([SEED, index]), SIZE, bool(mask.any()))
        assert np.array_equal(image, film.image) and np.array_equal(mask, film.mask * 255)
        positives += bool(mask.any())
    assert positives == made.positives
    with pytest.raises(InputError, match="is not an empty folder"):
        synthesize_pictures(out, images=1, size=SIZE, positive_rate=0, seed=SEED)
