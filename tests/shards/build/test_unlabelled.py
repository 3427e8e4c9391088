"""Films without labels in the shards: which ones, their groups, and what may learn from them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from shards.build.assemble import BuildSummary, finalize
from shards.build.build import build
from shards.build.films import FilmFolders, KnownIds, LabelFiles
from shards.build.folders import NAMED_TWICE
from shards.build.messages import summary_lines
from shards.build.options import BuildOptions, Execution
from shards.build.progress import read_list
from shards.build.sources import find_sources
from shards.dataset.export import export_nnunet, export_png
from shards.dataset.show import caption, choose
from shards.dataset.table import Shards
from shards.dataset.verify import verify
from shards.errors import InputError

SALT = b"a salt for these tests"
OPTIONS = BuildOptions(image_size=64, folds=2, holdout=0.25, samples_per_shard=4)
WriteFilm = Callable[..., Path]


def noise(seed: int) -> npt.NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
    return np.asarray(cv2.resize(coarse, (64, 64), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.fixture
def films(tmp_path: Path, write_film: WriteFilm) -> Path:
    """Twelve labelled films of twelve patients, two test films, and six without a label, of patients 0, 1, 20, 21, …"""
    for number in range(12):
        write_film(tmp_path / f"films/film{number:02d}.dcm", noise(number), PatientID=f"P{number}")
    for number in range(2):
        write_film(tmp_path / f"test/test{number}.dcm", noise(40 + number), PatientID=f"T{number}")
    for number, patient in enumerate([0, 1, 20, 20, 21, 22]):
        write_film(tmp_path / f"more/more{number}.dcm", noise(80 + number), PatientID=f"P{patient}")
    rows = [f"film{number:02d},{'130 4' if number % 2 else '-1'}" for number in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["ImageId,EncodedPixels", *rows]) + "\n")
    return tmp_path


def built(films: Path, out: str = "shards", known: Any = frozenset(), **more: Any) -> tuple[Shards, BuildSummary]:
    keep, execution = more.pop("keep_unlabelled", False), Execution(append=more.pop("append", False))
    folders = {"dicom": [films / "films"], "test_dicom": [films / "test"], "unlabelled_dicom": [films / "more"], **more}
    labels = LabelFiles(films / "labels.csv", keep_unlabelled=keep) if folders["dicom"] else LabelFiles()
    sources = find_sources(FilmFolders(**folders), labels, known)
    summary = build(sources, films / out, OPTIONS, SALT, execution)
    assert summary is not None
    return Shards(films / out), summary


def ids(shards: Shards, rows: npt.NDArray[np.int64]) -> list[str]:
    return shards.texts(rows, "image_id")


def test_unlabelled_films_have_tars_without_masks_and_no_fold(films: Path) -> None:
    shards, summary = built(films)
    rows = shards.indices("unlabelled")
    assert ids(shards, rows) == [f"more{number}" for number in range(6)]
    assert (summary.unlabelled_split, summary.unlabelled, summary.duplicate) == (6, 0, 0)
    assert [each["name"] for each in shards.manifest["shards"]][-2:] == ["unlabelled-00000.tar", "unlabelled-00001.tar"]
    for name in ("fold", "has_mask", "mask_area", "rle", "mask_offset"):
        assert shards.table[name].take(rows).null_count == 6
    assert verify(films / "shards") == []
    assert "6 films for training without labels" in "\n".join(summary_lines(films / "shards", summary))
    assert any("unlabelled  no label" in caption(shards, film) for film in choose(shards, 20, 0))


def test_labelled_and_test_films_are_those_of_a_build_without_them(films: Path) -> None:
    shards, _ = built(films)
    plain, _ = built(films, "plain", unlabelled_dicom=[])
    assert shards.table.slice(0, len(plain)).equals(plain.table)


def test_fold_learns_from_no_film_of_its_validation_patients_or_of_the_holdout(films: Path) -> None:
    shards, _ = built(films)
    part_of = {
        group: "holdout" if fold < 0 else fold
        for group, fold, split in zip(*(shards.column(name) for name in ("group", "fold", "split")), strict=True)
        if split in ("train", "holdout")
    }
    groups = shards.column("group")
    left_out = 0
    for fold in (0, 1):
        rows = shards.unlabelled_rows(fold)
        expected = [row for row in shards.indices("unlabelled") if part_of.get(groups[row]) not in (fold, "holdout")]
        assert rows.tolist() == expected
        left_out += 6 - len(rows)
    assert left_out > 0


@pytest.mark.parametrize("twin", ["films/film03.dcm", "test/test1.dcm", "more/more2.dcm"])
def test_copy_of_another_film_is_a_duplicate_that_nothing_reads(films: Path, write_film: WriteFilm, twin: str) -> None:
    image = {"films/film03.dcm": noise(3), "test/test1.dcm": noise(41), "more/more2.dcm": noise(82)}[twin]
    brighter = np.asarray(np.clip(image.astype(np.int64) + 3, 0, 255), np.uint8)
    write_film(films / "more/more9.dcm", brighter, PatientID="P99")
    shards, summary = built(films)
    assert ids(shards, shards.indices("duplicate")) == ["more9"]
    assert (summary.unlabelled_split, summary.duplicate) == (6, 1)
    assert all("more9" not in ids(shards, shards.unlabelled_rows(fold)) for fold in (0, 1))
    assert summary.known_test == 0
    assert verify(films / "shards") == []
    again = finalize(films / "shards", {"duplicate_distance": None}, SALT)
    assert (again.unlabelled_split, again.duplicate) == (7, 0)
    assert finalize(films / "shards", {"duplicate_distance": 7}, SALT).duplicate == 1


def test_film_that_another_option_gives_too_is_not_an_unlabelled_one(films: Path, write_film: WriteFilm) -> None:
    write_film(films / "more/film03.dcm", noise(3), PatientID="P3")
    (films / "more/test0.dcm").symlink_to(films / "test/test0.dcm")
    shards, summary = built(films)
    assert len(shards.indices("unlabelled")) == 6
    assert summary.rejected == 0
    assert summary.skipped[NAMED_TWICE] == 2


def test_listed_films_without_a_label_join_on_request(films: Path) -> None:
    labels = films / "labels.csv"
    labels.write_text("\n".join(labels.read_text().splitlines()[:-2]) + "\n")
    _, summary = built(films, "listed")
    assert (summary.unlabelled, summary.unlabelled_split) == (2, 6)
    shards, summary = built(films, "kept", keep_unlabelled=True)
    assert (summary.unlabelled, summary.unlabelled_split) == (0, 8)
    assert ids(shards, shards.indices("unlabelled"))[:2] == ["film10", "film11"]
    with pytest.raises(InputError, match="--keep-unlabelled is for films of --dicom and --images"):
        find_sources(FilmFolders(unlabelled_dicom=[films / "more"]), LabelFiles(keep_unlabelled=True))


def test_unlabelled_films_are_appended_to_a_finished_dataset(films: Path) -> None:
    plain, _ = built(films, unlabelled_dicom=[])
    known = KnownIds(frozenset(plain.column("image_id")))
    shards, summary = built(films, known=known, append=True, dicom=[], test_dicom=[])
    assert summary.unlabelled_split == 6
    assert shards.table.slice(0, len(plain)).equals(plain.table)
    # Given once more, also with folders that hold labelled films.
    again, _ = built(films, known=known, append=True, dicom=[], test_dicom=[], unlabelled_dicom=[films / "films"])
    assert again.table.equals(shards.table)


def test_film_that_was_listed_and_is_appended_is_not_listed_any_more(films: Path) -> None:
    labels = films / "labels.csv"
    labels.write_text("\n".join(labels.read_text().splitlines()[:-2]) + "\n")
    before, _ = built(films)
    assert [row[0] for row in read_list(films / "shards/unlabelled.csv")] == ["film10", "film11"]
    known = KnownIds(frozenset(before.column("image_id")))
    shards, summary = built(films, known=known, append=True, keep_unlabelled=True)
    assert (summary.unlabelled, summary.unlabelled_split) == (0, 8)
    assert read_list(films / "shards/unlabelled.csv") == []
    assert shards.table.slice(0, len(before)).equals(before.table)


@pytest.mark.parametrize("as_a", ["train", "test"])
def test_unlabelled_film_does_not_become_another_one_later(films: Path, as_a: str) -> None:
    shards, _ = built(films)
    known = KnownIds(frozenset(shards.column("image_id")))
    if as_a == "train":
        (films / "labels.csv").write_text("ImageId,EncodedPixels\nmore0,-1\n")
        folders: dict[str, Any] = {"dicom": [films / "more"], "test_dicom": [], "unlabelled_dicom": []}
    else:
        folders = {"dicom": [], "test_dicom": [films / "more"], "unlabelled_dicom": []}
    with pytest.raises(InputError, match=rf"more0: is in split unlabelled of .*, not to be added as {as_a}"):
        built(films, known=known, append=True, **folders)


def test_label_of_a_film_that_is_given_as_unlabelled_is_refused(films: Path) -> None:
    with (films / "labels.csv").open("a") as stream:
        stream.write("more4,-1\n")
    with pytest.raises(InputError, match=r"labels.csv line 14: more4 has a label but is among the unlabelled films"):
        built(films)


def test_test_film_of_an_unlabelled_patient_is_not_known_from_training(films: Path, write_film: WriteFilm) -> None:
    write_film(films / "more/more9.dcm", noise(99), PatientID="T0")
    assert built(films)[1].known_test == 0


def test_films_csv_of_an_export_gives_the_folds_back(films: Path) -> None:
    shards, _ = built(films)
    export_png(shards, films / "png")
    options = replace(OPTIONS, folds_csv=films / "png/films.csv")
    folders = FilmFolders([films / "films"], test_dicom=[films / "test"], unlabelled_dicom=[films / "more"])
    build(find_sources(folders, LabelFiles(films / "labels.csv")), films / "again", options, SALT)
    again = Shards(films / "again")
    for name in ("image_id", "split", "fold"):
        assert again.table[name].equals(shards.table[name])


def test_other_tools_get_them_without_a_mask(films: Path) -> None:
    shards, _ = built(films)
    folder = export_nnunet(shards, films / "nnunet")
    keys = set(shards.texts(shards.indices("unlabelled"), "key"))
    assert keys.isdisjoint(path.stem for path in (folder / "labelsTr").iterdir())
    assert keys.isdisjoint(path.stem.removesuffix("_0000") for path in (folder / "imagesTr").iterdir())
