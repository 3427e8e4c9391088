"""Tasks, appends, codecs and privacy: whole builds under their options."""

import csv
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from images import decode
from pydicom.pixels import pixel_array
from shard_builds import build_line, good, part_of, tars, write_salt

from shards import files as file_module
from shards.build import build as build_module
from shards.build.sample import build_sample
from shards.dataset import rle
from shards.dataset.table import Shards
from shards.dataset.verify import verify

Cli = Callable[..., Any]


def test_tasks_of_another_build_and_bad_tasks_are_refused(cli: Cli, films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    good(cli(*build_line(films, out, "--task", "1/2")))
    assert "other tasks" in cli(*build_line(films, out, "--task", "2/2", "--image-size", 96)).only_line()
    for task in ("0/2", "3/2", "x/2", "2"):
        assert task in cli(*build_line(films, out, "--task", task)).only_line()


def test_appended_films_get_shards_of_their_own_and_old_ones_keep_bytes_and_folds(
    cli: Cli, films: Path, tmp_path: Path
) -> None:
    first = part_of(films, tmp_path / "first", slice(0, 20))
    out = tmp_path / "out"
    good(cli(*build_line(first, out, "--holdout", 0.25)))
    old, before = tars(out), Shards(out)
    folds = dict(
        zip(before.column("key"), zip(before.column("fold"), before.column("split"), strict=True), strict=True)
    )
    assert "--append" in cli(*build_line(films, out)).only_line()
    text = good(cli(*build_line(films, out, "--append")))
    assert "groups" in text
    assert {name: content for name, content in tars(out).items() if name in old} == old
    after = Shards(out)
    assert len(after) == 30
    assert verify(out) == []
    now = dict(zip(after.column("key"), zip(after.column("fold"), after.column("split"), strict=True), strict=True))
    assert {key: now[key] for key in folds} == folds
    assert set(after.column("fold")[20:]) <= {-1, 0, 1}
    unchanged = tars(out)
    good(cli(*build_line(films, out, "--append")))
    assert tars(out) == unchanged, "appending existing films adds nothing"
    other = ["--image-size", 96]
    assert "--image-size" in cli(*build_line(films, out, "--append", *other)).only_line()


def test_appending_with_another_label_or_role_for_a_known_film_is_refused(
    cli: Cli, films: Path, tmp_path: Path, tree_of: Any
) -> None:
    first = part_of(films, tmp_path / "first", slice(0, 20))
    good(cli(*build_line(first, tmp_path / "out")))
    before = tree_of(tmp_path / "out")
    text = (first / "train-rle.csv").read_text().splitlines()
    number = next(n for n, row in enumerate(text) if row.endswith("-1"))
    (first / "train-rle.csv").write_text(
        "\n".join([*text[:number], text[number].replace("-1", "5 7"), *text[number + 1 :]])
    )
    assert "label differs" in cli(*build_line(first, tmp_path / "out", "--append")).only_line()
    line = ["build", "--test-dicom", first / "dicom-images", "--out", tmp_path / "out", "--image-size", 64, "--append"]
    assert "not to be added as test" in cli(*line).only_line()
    assert tree_of(tmp_path / "out") == before


@pytest.mark.parametrize("square", [True, False])
def test_jpeg_shards_hold_the_films_own_streams_and_size(cli: Cli, films: Path, tmp_path: Path, square: bool) -> None:
    source = films
    if not square:
        source = tmp_path / "films"
        (source / "dicom-images").mkdir(parents=True)
        (source / "train-rle.csv").write_text("".join(f"film{n},{'-1' if n % 2 else '100 30'}\n" for n in range(6)))
        for number in range(6):
            picture = np.random.default_rng(number).integers(0, 255, (90, 64), np.uint8)
            cv2.imwrite(str(source / "dicom-images" / f"film{number}.png"), cv2.GaussianBlur(picture, (9, 9), 0))
    line = build_line(source, tmp_path / "out", "--codec", "jpeg", "--duplicate-distance", -1)
    if not square:
        line[1] = "--images"
    text = good(cli(*line))
    shards = Shards(tmp_path / "out")
    assert verify(tmp_path / "out") == []
    assert ("were encoded again" in text) is not square
    for index in range(len(shards)):
        image = decode(shards.read(index, "image"))
        mask = decode(shards.read(index, "mask"))
        grid = shards.grid(index)
        assert image.shape == mask.shape == (grid.height, grid.width)
        assert np.array_equal(mask > 0, rle.decode(shards.column("rle")[index], grid.height, grid.width))
        if square:
            path = next(source.rglob(f"{shards.column('image_id')[index]}.dcm"))
            assert np.array_equal(image, pixel_array(path, decoding_plugin="pillow"))
        else:
            assert grid.origin == (13, 0)


def identifiers(films: Path) -> set[bytes]:
    """Return every text of four or more characters that could identify a film or a patient."""
    found = set()
    for path in films.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "StudyDate", "StudyTime"):
            found.add(str(dataset.get(keyword, "")).encode())
    return {text for text in found if len(text) >= 4} | {str(films).encode(), b".dcm"}


def table_text(out: Path) -> bytes:
    return json.dumps(Shards(out).table.to_pylist()).encode()


@pytest.mark.parametrize("codec", ["png", "jpeg"])
def test_no_identifier_is_in_any_byte_written(cli: Cli, films: Path, tmp_path: Path, codec: str) -> None:
    out = tmp_path / "out"
    good(cli(*build_line(films, out, "--codec", codec, "--pseudonymise")))
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file()) + table_text(out)
    image_ids = {path.stem.encode() for path in films.rglob("*.dcm")}
    secrets = {(tmp_path / "out.salt").read_bytes().strip()}
    for text in identifiers(films) | image_ids | secrets | {i.replace(b".", b"-") for i in image_ids}:
        assert text not in written
    names = tmp_path / "out.ids.csv"
    assert names.stat().st_mode & 0o077 == 0
    known = dict(csv.reader(names.open()))
    assert {name.encode() for name in known} == image_ids
    assert set(known.values()) == set(Shards(out).column("image_id"))
    for index in range(len(Shards(out))):
        assert Shards(out).read(index, "image")


def test_pseudonymous_films_can_be_appended(cli: Cli, films: Path, tmp_path: Path) -> None:
    first = part_of(films, tmp_path / "first", slice(0, 20))
    good(cli(*build_line(first, tmp_path / "out", "--pseudonymise")))
    rest = part_of(films, tmp_path / "rest", slice(20, 30))
    line = build_line(rest, tmp_path / "out", "--pseudonymise", "--append")
    line[line.index("--rle") + 1] = films / "train-rle.csv"
    good(cli(*line))
    assert len(Shards(tmp_path / "out")) == 30
    assert len(list(csv.reader((tmp_path / "out.ids.csv").open()))) == 30


def test_a_full_disk_is_one_line_and_the_next_run_finishes(
    cli: Cli, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree_of: Any
) -> None:
    good(cli(*build_line(films, tmp_path / "whole/out")))
    salt = ("--patient-salt-file", tmp_path / "whole/out.salt")
    made = 0

    def full_disk(*arguments: Any) -> Any:
        nonlocal made
        made += 1
        if made > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        return build_sample(*arguments)

    monkeypatch.setattr(build_module, "build_sample", full_disk)
    line = cli(*build_line(films, tmp_path / "out", *salt)).only_line()
    assert "train-00001.tar: No space left on device" in line
    assert not list((tmp_path / "out").glob("*.tmp")) + list((tmp_path / "out").glob(".*.tmp"))
    kept = (tmp_path / "out/train-00000.tar").stat().st_mtime_ns
    monkeypatch.setattr(build_module, "build_sample", build_sample)
    good(cli(*build_line(films, tmp_path / "out", *salt)))
    assert (tmp_path / "out/train-00000.tar").stat().st_mtime_ns == kept
    assert tree_of(tmp_path / "out") == tree_of(tmp_path / "whole/out")


def test_an_output_that_cannot_be_written_is_one_line(
    cli: Cli, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*arguments: Any, **more: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "out/train-00000.tar"))

    monkeypatch.setattr(file_module, "claimed", read_only)
    line = cli(*build_line(films, tmp_path / "out", "--patient-salt-file", write_salt(tmp_path))).only_line()
    assert "Read-only file system" in line
    assert "it is mounted read-only: give another folder" in line


def test_a_salt_inside_the_dataset_and_one_that_others_may_read_are_refused(
    cli: Cli, films: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    salt = out / "salt"
    assert (
        f"{salt}: the patient salt must not be in the dataset"
        in cli(*build_line(films, out, "--patient-salt-file", salt)).only_line()
    )
    salt = write_salt(tmp_path)
    salt.chmod(0o644)
    assert f"chmod 600 {salt}" in cli(*build_line(films, out, "--patient-salt-file", salt)).only_line()
    assert not out.exists()
