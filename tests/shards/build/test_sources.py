"""Matching of films, labels and masks, and one line for what does not match."""

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from shards.build.assemble import BuildSummary
from shards.build.build import build
from shards.build.films import NO_MASK, FilmFolders, KnownIds, LabelFiles, SourceFilm, Sources
from shards.build.options import BuildOptions, Execution
from shards.build.progress import read_list
from shards.build.sources import find_sources
from shards.dataset.keys import image_pseudonym
from shards.dataset.table import Shards
from shards.errors import InputError

WriteFilm = Callable[..., Path]
SALT = b"a salt for these tests"
OPTIONS = BuildOptions(image_size=32, folds=2)


def noise(seed: int, side: int = 64) -> npt.NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


def write_png(path: Path, image: npt.NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return path


def square(value: int = 255) -> npt.NDArray[np.uint8]:
    mask = np.zeros((64, 64), np.uint8)
    mask[8:16, 8:16] = value
    return mask


def image_sources(folder: Path, absent_mask: str = "unlabelled", **more: Any) -> Sources:
    labels = LabelFiles(masks=folder / "masks", absent_mask=absent_mask)
    return find_sources(FilmFolders(images=[folder / "films"]), labels, **more)


def labelled(folder: Path, rows: str, **more: Any) -> Sources:
    path = folder / "labels.csv"
    path.write_text(rows, encoding="utf-8")
    return find_sources(FilmFolders(dicom=[folder / "films"]), LabelFiles(path), **more)


@pytest.fixture
def positives_only(tmp_path: Path) -> Path:
    """Six films; only the two positive ones have a mask."""
    for number in range(6):
        write_png(tmp_path / f"films/{number}.png", noise(number))
    for number in range(2):
        write_png(tmp_path / f"masks/{number}.png", square())
    return tmp_path


def made(sources: Sources, out: Path, options: BuildOptions = OPTIONS, **more: Any) -> BuildSummary:
    summary = build(sources, out, options, SALT, Execution(**more))
    assert summary is not None
    return summary


# -- masks


def test_films_without_a_mask_are_unlabelled_and_the_reason_names_the_option(positives_only: Path) -> None:
    sources = image_sources(positives_only)
    assert [source.image_id for source in sources.train] == ["0", "1"]
    assert made(sources, positives_only / "out").unlabelled == 4
    rows = read_list(positives_only / "out/unlabelled.csv")
    assert rows[0] == ("2", "2.png", NO_MASK)
    assert "--absent-mask negative" in NO_MASK


def test_films_without_a_mask_are_negative_if_the_option_says_so(positives_only: Path) -> None:
    summary = made(image_sources(positives_only, absent_mask="negative"), positives_only / "out")
    assert (summary.train, summary.positives, summary.unlabelled) == (6, 2, 0)
    shards = Shards(positives_only / "out")
    rles = dict(zip(shards.column("image_id"), shards.column("rle"), strict=True))
    assert {image_id for image_id, rle in rles.items() if rle == "-1"} == {"2", "3", "4", "5"}


def test_a_negative_film_has_the_bytes_of_one_with_an_empty_mask(positives_only: Path, tree_of: Any) -> None:
    made(image_sources(positives_only, absent_mask="negative"), positives_only / "absent")
    for number in range(2, 6):
        write_png(positives_only / f"masks/{number}.png", square(0))
    made(image_sources(positives_only), positives_only / "empty")
    absent, empty = tree_of(positives_only / "absent"), tree_of(positives_only / "empty")
    assert {name: absent[name] for name in absent if name.endswith((".tar", ".parquet"))} == {
        name: empty[name] for name in empty if name.endswith((".tar", ".parquet"))
    }


def test_an_absent_mask_without_masks_is_refused(film_set: Any) -> None:
    with pytest.raises(InputError, match="--absent-mask negative: works with --masks"):
        find_sources(FilmFolders(test_dicom=[film_set.test_dicom]), LabelFiles(absent_mask="negative"))


def test_a_mask_without_a_film_is_refused_but_for_films_of_the_dataset(positives_only: Path) -> None:
    write_png(positives_only / "masks/9.png", square())
    with pytest.raises(InputError, match=r"9\.png: a mask without a film"):
        image_sources(positives_only)
    assert len(image_sources(positives_only, known=KnownIds(frozenset({"9"}))).train) == 2
    under_pseudonyms = KnownIds(frozenset({image_pseudonym("9", SALT)}), SALT)
    assert len(image_sources(positives_only, known=under_pseudonyms).train) == 2


def test_a_folder_without_masks_says_what_it_holds(positives_only: Path) -> None:
    shutil.rmtree(positives_only / "masks")
    (positives_only / "masks").mkdir()
    (positives_only / "masks/0.tif").write_bytes(b"II*")
    with pytest.raises(InputError, match=r"masks: holds no masks; --masks takes \.png.*found 1 \.tif files"):
        image_sources(positives_only, absent_mask="negative")


def test_companions_of_macos_are_neither_films_nor_masks(positives_only: Path) -> None:
    for place in ("films/._0.png", "masks/._0.png", "masks/__MACOSX/0.png"):
        path = positives_only / place
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0\5\x16\7")
    sources = image_sources(positives_only, absent_mask="negative")
    assert len(sources.train) == 6
    assert list(sources.skipped_counts.values()) == [3]
    assert made(sources, positives_only / "out").rejected == 0


def test_masks_below_the_films_are_no_films(positives_only: Path) -> None:
    (positives_only / "masks").rename(positives_only / "films/masks")
    folder = positives_only / "films"
    sources = find_sources(FilmFolders(images=[folder]), LabelFiles(masks=folder / "masks"))
    assert (len(sources.train), len(sources.left_out), sources.set_aside) == (2, 4, ())


def test_films_are_not_taken_for_their_own_masks(positives_only: Path) -> None:
    with pytest.raises(InputError, match="--masks is also a folder of films"):
        find_sources(FilmFolders(images=[positives_only / "films"]), LabelFiles(masks=positives_only / "films"))


# -- names


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_an_accent_is_the_same_in_both_forms(
    tmp_path: Path, write_film: WriteFilm, on_disk: Any, in_table: Any
) -> None:
    name = "Müller é"
    write_film(tmp_path / "films" / f"{unicodedata.normalize(on_disk, name)}.dcm", noise(0))
    sources = labelled(tmp_path, f"{unicodedata.normalize(in_table, name)},-1\n")
    assert [source.image_id for source in sources.train] == [unicodedata.normalize(in_table, name)]


def test_an_accent_of_a_mask_is_the_same_in_both_forms(tmp_path: Path) -> None:
    write_png(tmp_path / "films" / f"{unicodedata.normalize('NFD', 'é')}.png", noise(0))
    write_png(tmp_path / "masks" / f"{unicodedata.normalize('NFC', 'é')}.png", square())
    assert [source.image_id for source in image_sources(tmp_path).train] == [unicodedata.normalize("NFD", "é")]


def test_two_films_whose_names_differ_in_form_alone_keep_them(tmp_path: Path, write_film: WriteFilm) -> None:
    both = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    for number, name in enumerate(both):
        write_film(tmp_path / "films" / f"{name}.dcm", noise(number))
    sources = labelled(tmp_path, "".join(f"{name},-1\n" for name in both))
    assert {source.image_id for source in sources.train} == set(both)


def test_spaces_around_a_name_do_not_part_a_film_from_its_label(tmp_path: Path, write_film: WriteFilm) -> None:
    write_film(tmp_path / "films/ film 1 .dcm", noise(0))
    assert len(labelled(tmp_path, "film 1,-1\n").train) == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (b"f\xfclm.dcm", "not UTF-8"),
        (b"two\nlines.dcm", "line break"),
        (b"=1+1.dcm", "formula"),
        (b"+a", "formula"),
        (b"@a.dcm", "formula"),
    ],
)
def test_a_name_that_cannot_be_an_id_is_one_clear_line(
    tmp_path: Path, write_film: WriteFilm, cli: Any, name: bytes, says: str
) -> None:
    write_film(tmp_path / "films/a.dcm", noise(0))
    write_film(tmp_path / "films" / os.fsdecode(name), noise(1))
    line = cli("build", "--test-dicom", tmp_path / "films", "--out", tmp_path / "out").only_line()
    assert says in line and "rename it" in line
    assert line.isprintable()
    assert not (tmp_path / "out").exists()


def test_a_mask_whose_name_is_not_utf_8_is_one_clear_line(positives_only: Path) -> None:
    write_png(positives_only / "masks" / os.fsdecode(b"f\xfclm.png"), square())
    with pytest.raises(InputError, match="not UTF-8"):
        image_sources(positives_only)


def test_folders_may_be_called_anything(tmp_path: Path, write_film: WriteFilm, cli: Any) -> None:
    folder = tmp_path / "films" / os.fsdecode(b"M\xfcller\n=1+1")
    write_film(folder / "a.dcm", noise(0))
    (folder / "b.dcm").write_bytes(b"broken")
    (tmp_path / "films/=x").mkdir()
    (tmp_path / "films/=x/c.dcm").write_bytes(b"broken")
    done = cli(
        *("build", "--test-dicom", tmp_path / "films", "--out", tmp_path / "out", "--max-rejects", 2),
        *("--image-size", 32, "--workers", 1),
    )
    assert done.code == 0, done.err
    assert [row[1] for row in read_list(tmp_path / "out/rejected.csv")] == [r"M\xfcller\n=1+1/b.dcm", "./=x/c.dcm"]


@pytest.mark.parametrize("option", ["--out", "--test-dicom", "--rle"])
def test_a_path_that_is_not_utf_8_is_one_clear_line(tmp_path: Path, film_set: Any, cli: Any, option: str) -> None:
    given = {"--test-dicom": film_set.test_dicom, "--out": tmp_path / "out"}
    given[option] = tmp_path / os.fsdecode(b"M\xfcller")
    line = cli("build", *(part for pair in given.items() for part in pair)).only_line()
    assert option in line and r"M\xfcller" in line and "not UTF-8" in line


def test_a_very_long_name_is_a_film_like_any_other(tmp_path: Path, write_film: WriteFilm) -> None:
    write_film(tmp_path / "films" / ("x" * 251 + ".dcm"), noise(0))
    write_film(tmp_path / "films/a,b;c.dcm", noise(1))
    made(labelled(tmp_path, f'{"x" * 251},-1\n"a,b;c",-1\n'), tmp_path / "out")
    assert set(Shards(tmp_path / "out").column("image_id")) == {"x" * 251, "a,b;c"}


# -- films that share a name


@pytest.fixture
def cd(tmp_path: Path, write_film: WriteFilm) -> Path:
    """The layout of a DICOM CD: four films with the same name."""
    for number in range(4):
        write_film(tmp_path / f"films/PT{number}/IM000000", noise(number), SOPInstanceUID=f"1.2.{number}")
    (tmp_path / "films/DICOMDIR").write_bytes(bytes(128) + b"DICM")
    return tmp_path


def test_films_of_one_name_are_refused_and_the_option_is_named(cd: Path) -> None:
    sources = find_sources(FilmFolders(test_dicom=[cd / "films"]))
    assert len(sources.test) == 1
    reason = "remove one of the two, or pass --id sop where different films have one file name"
    assert [str(item) for item in sources.set_aside] == [f"same image id as PT0/IM000000; {reason}"] * 3


def test_films_of_one_name_go_by_their_uids(cd: Path) -> None:
    sources = labelled(cd, "".join(f"1.2.{number},-1\n" for number in range(3)), id_kind="sop")
    assert [source.image_id for source in sources.train] == ["1.2.0", "1.2.1", "1.2.2"]
    assert [source.image_id for source in sources.left_out] == ["1.2.3"]
    assert sources.set_aside == ()


def test_masks_go_by_the_uids_too(cd: Path) -> None:
    for number in range(4):
        write_png(cd / f"masks/1.2.{number}.png", square())
    sources = find_sources(FilmFolders(dicom=[cd / "films"]), LabelFiles(masks=cd / "masks"), id_kind="sop")
    assert {source.mask_path for source in sources.train} == {cd / f"masks/1.2.{number}.png" for number in range(4)}


def test_one_uid_in_two_files_and_none_in_another_are_set_aside(cd: Path, write_film: WriteFilm) -> None:
    write_film(cd / "films/PT9/IM000000", noise(9), SOPInstanceUID="1.2.3")
    (cd / "films/PT9/=broken.dcm").write_bytes(b"broken")
    sources = find_sources(FilmFolders(test_dicom=[cd / "films"]), id_kind="sop")
    assert len(sources.test) == 4
    assert {item.source.image_id: str(item) for item in sources.set_aside} == {
        "1.2.3": "same image id as PT3/IM000000; remove one of the two",
        "PT9/=broken.dcm": "no SOPInstanceUID can be read in it; export it again",
    }


def test_a_png_has_no_uid(positives_only: Path) -> None:
    with pytest.raises(InputError, match="a PNG or JPEG has no SOPInstanceUID"):
        image_sources(positives_only, id_kind="sop")


def test_uids_work_in_tasks_appends_and_under_pseudonyms(cd: Path, cli: Any, write_film: WriteFilm) -> None:
    out = cd / "out"
    given = ["build", "--test-dicom", cd / "films", "--out", out, "--id", "sop", "--pseudonymise"]
    given += ["--image-size", 32, "--workers", 1, "--samples-per-shard", 2]
    for task in ("1/2", "2/2"):
        assert cli(*given, "--task", task).code == 0
    assert cli("finalize", out).code == 0
    write_film(cd / "films/PT4/IM000000", noise(4), SOPInstanceUID="1.2.4")
    appended = cli(*given, "--append")
    assert appended.code == 0, appended.err
    ids = {row.split(",")[0] for row in (cd / "out.ids.csv").read_text().splitlines()}
    assert ids == {f"1.2.{number}" for number in range(5)}
    assert len(Shards(out)) == 5
    line = cli(*[part for part in given if part not in ("--id", "sop")], "--append").only_line()
    assert "was built with another --id" in line


def test_a_finished_dataset_of_names_does_not_ask_for_the_option(film_set: Any, own_dataset: Path) -> None:
    inputs = film_set.inputs()
    sources = find_sources(FilmFolders(dicom=inputs.dicom, test_dicom=inputs.test_dicom), LabelFiles(inputs.rle))
    assert build(sources, own_dataset, inputs.options, b"a salt for the tests only") is not None


# -- folders


@pytest.mark.parametrize("option", ["--dicom", "--images", "--always-train", "--test-dicom", "--test-images"])
def test_a_folder_without_films_says_what_is_taken_and_what_it_holds(
    tmp_path: Path, film_set: Any, cli: Any, option: str
) -> None:
    for number in range(12):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{number}.tif").write_bytes(b"II*")
    line = cli("build", option, tmp_path / "in", "--rle", film_set.labels, "--out", tmp_path / "out").only_line()
    assert f"{option} takes ." in line and "found 12 .tif files" in line
    assert (".png" in line) == ("dicom" not in option)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path, cli: Any, write_film: WriteFilm) -> None:
    path = write_film(tmp_path / "a.dcm", noise(0))
    line = cli("build", "--test-dicom", path, "--out", tmp_path / "out").only_line()
    assert "a.dcm: not a folder; give the folder that holds the file with --test-dicom" in line


def test_a_folder_given_twice_is_read_once(tmp_path: Path, write_film: WriteFilm) -> None:
    write_film(tmp_path / "in/below/a.dcm", noise(0))
    for given in (["in", "in"], ["in", "in/below"], ["in/below", "in"]):
        sources = find_sources(FilmFolders(test_dicom=[tmp_path / name for name in given]))
        assert (len(sources.test), sources.set_aside) == (1, ())


def test_a_link_to_a_film_that_is_taken_is_no_second_film(tmp_path: Path, write_film: WriteFilm) -> None:
    path = write_film(tmp_path / "in/all/a.dcm", noise(0))
    (tmp_path / "in/chosen").mkdir()
    (tmp_path / "in/chosen/a.dcm").symlink_to(path)
    sources = find_sources(FilmFolders(test_dicom=[tmp_path / "in"]))
    assert (len(sources.test), sources.set_aside) == (1, ())
    assert sources.skipped_counts == {"links to films that are taken already": 1}
    (tmp_path / "labels.csv").write_text("a,-1\n")
    both = find_sources(
        FilmFolders(dicom=[tmp_path / "in/all"], test_dicom=[tmp_path / "in/chosen"]),
        LabelFiles(tmp_path / "labels.csv"),
    )
    assert "same image id" in str(both.set_aside[0]), "a film cannot be trained and tested on"


def test_the_build_says_what_it_skips_and_the_manifest_counts_it(
    tmp_path: Path, cli: Any, write_film: WriteFilm
) -> None:
    write_film(tmp_path / "in/a.dcm", noise(0))
    write_film(tmp_path / "elsewhere/b.dcm", noise(1))
    for number in range(3):
        (tmp_path / f"in/{number}.dcm.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "in/more").symlink_to("../elsewhere")
    (tmp_path / "in/gone.dcm").symlink_to("../nowhere.dcm")
    given = ["build", "--test-dicom", tmp_path / "in", "--out", tmp_path / "out", "--image-size", 32, "--workers", 1]
    done = cli(*given)
    assert done.code == 0
    assert "skipped: 3 files: compressed (.gz); unpack them" in done.out.splitlines()
    assert "skipped: 1 file: links to nothing" in done.out.splitlines()
    assert "2 test films" in done.out
    assert f"{tmp_path}/in/gone.dcm: a broken link" in done.err
    counts = Shards(tmp_path / "out").manifest["counts"]
    assert counts["skipped"] == {"compressed (.gz); unpack them": 3, "links to nothing": 1}
    (tmp_path / "in/notes.txt").write_text("new")
    again = cli(*given)
    assert (again.code, "1 reused" in again.out) == (0, True), "other files do not make another build"


def test_many_links_to_nothing_are_not_a_flood(tmp_path: Path, cli: Any, write_film: WriteFilm) -> None:
    write_film(tmp_path / "in/a.dcm", noise(0))
    for number in range(100):
        (tmp_path / f"in/gone{number:03d}.dcm").symlink_to("nowhere")
    done = cli("build", "--test-dicom", tmp_path / "in", "--out", tmp_path / "out", "--image-size", 32, "--workers", 1)
    assert len(done.err.splitlines()) == 21
    assert "80 more" in done.err.splitlines()[-1]


def test_the_dataset_may_lie_in_the_folder_of_its_films(tmp_path: Path, cli: Any, write_film: WriteFilm) -> None:
    write_film(tmp_path / "in/a.dcm", noise(0))
    given = ["build", "--test-dicom", tmp_path / "in", "--out", tmp_path / "in/out", "--image-size", 32, "--workers", 1]
    first = cli(*given)
    assert (first.code, "skipped" in first.out) == (0, False)
    second = cli(*given)
    assert (second.code, "1 reused" in second.out) == (0, True)
    assert "(.tar)" not in second.out


def test_a_film_that_vanishes_before_it_is_read_is_rejected(tmp_path: Path, write_film: WriteFilm) -> None:
    for number in range(2):
        write_film(tmp_path / f"in/{number}.dcm", noise(number))
    sources = find_sources(FilmFolders(test_dicom=[tmp_path / "in"]))
    (tmp_path / "in/1.dcm").unlink()
    assert made(sources, tmp_path / "out", max_rejects=1).rejected == 1
    assert read_list(tmp_path / "out/rejected.csv")[0][:2] == ("1", "1.dcm")


def test_a_film_whose_mask_vanishes_is_rejected(positives_only: Path) -> None:
    sources = image_sources(positives_only, absent_mask="negative")
    (positives_only / "masks/1.png").unlink()
    assert made(sources, positives_only / "out", max_rejects=1).rejected == 1


def test_a_source_of_a_test_film_has_no_label() -> None:
    source = SourceFilm("a", "a", Path("in/a.dcm"), Path("in"), "test")
    assert source.labels is None and source.is_dicom and source.listed_path == "a.dcm"
