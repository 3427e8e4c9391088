"""Test films that repeat a labelled film, or its patient, are warned of and counted."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from film_files import coarse_noise

from shards.build.leaks import known_test_films
from shards.dataset.manifest import read_manifest
from shards.dataset.table import Shards

WriteFilm = Callable[..., Path]


@pytest.fixture
def films(tmp_path: Path, write_film: WriteFilm) -> Path:
    """Four labelled films and four test films: one repeats a labelled film, one is of a labelled film's patient."""
    for number in range(4):
        write_film(tmp_path / f"train/{number}.dcm", coarse_noise(number), PatientID=f"P{number}")
    (tmp_path / "labels.csv").write_text("".join(f"{number},-1\n" for number in range(4)))
    write_film(tmp_path / "test/copy.dcm", coarse_noise(1), PatientID="other")
    write_film(tmp_path / "test/patient.dcm", coarse_noise(11), PatientID="P2")
    write_film(tmp_path / "test/new.dcm", coarse_noise(12), PatientID="P9")
    write_film(tmp_path / "test/new2.dcm", coarse_noise(13), PatientID="P9")
    return tmp_path


def arguments(films: Path, *more: object) -> list[object]:
    given = ["build", "--dicom", films / "train", "--rle", films / "labels.csv", "--test-dicom", films / "test"]
    return [*given, "--out", films / "out", "--image-size", 32, "--folds", 2, "--workers", 1, *more]


def test_known_test_films_are_warned_of_and_counted(films: Path, cli: Any) -> None:
    done = cli(*arguments(films))
    (line,) = [line for line in done.out.splitlines() if "repeat labelled films" in line]
    assert line.startswith("warning: test films that repeat labelled films or their patients (2): copy, patient;")
    assert read_manifest(films / "out")["counts"]["known_test"] == 2
    assert "their patients (2): copy, patient;" in cli(*arguments(films)).out, "a rerun repeats it"


def test_another_split_counts_again(films: Path, cli: Any) -> None:
    cli(*arguments(films))
    done = cli("finalize", films / "out", "--duplicate-distance", -1)
    assert "warning: test films that repeat labelled films or their patients (1): " in done.out
    assert read_manifest(films / "out")["counts"]["known_test"] == 1
    (films / "groups.csv").write_text("copy,a\npatient,b\n0,c\n2,d\n")
    cli("finalize", films / "out", "--groups", films / "groups.csv")
    assert read_manifest(films / "out")["counts"]["known_test"] == 0


def test_films_that_are_added_are_compared_with_all(films: Path, cli: Any, write_film: WriteFilm) -> None:
    shutil.rmtree(films / "test")
    write_film(films / "test/new.dcm", coarse_noise(12), PatientID="P9")
    cli(*arguments(films))
    assert read_manifest(films / "out")["counts"]["known_test"] == 0
    write_film(films / "test/copy.dcm", coarse_noise(1), PatientID="other")
    assert "their patients (1): copy;" in cli(*arguments(films, "--append")).out


def test_under_pseudonyms_no_name_is_printed(films: Path, cli: Any) -> None:
    done = cli(*arguments(films, "--pseudonymise"))
    (line,) = [line for line in done.out.splitlines() if "repeat labelled films" in line]
    assert "copy" not in line and not re.search(r"\bpatient\b", line)


@pytest.mark.parametrize("split", ["train", "holdout", "always_train"])
def test_every_labelled_split_counts(split: str) -> None:
    rows = {"image_id": ["a", "b", "c"], "split": [split, "test", "test"], "group": ["g", "g", "h"]}
    assert known_test_films(pa.table(rows)) == ["b"]


def test_a_table_of_test_films_has_none(film_set: Any) -> None:
    assert known_test_films(pa.table({"image_id": ["a", "b"], "split": ["test"] * 2, "group": ["g", "g"]})) == []


def test_a_manifest_from_before_is_read_split_and_added_to(film_set: Any, own_dataset: Path, cli: Any) -> None:
    path = own_dataset / "manifest.json"
    manifest = json.loads(path.read_text())
    for part, name in (("counts", "known_test"), ("counts", "skipped"), ("arguments", "id")):
        del manifest[part][name]
    path.write_text(json.dumps(manifest))
    assert len(Shards(own_dataset)) == 33
    inputs = film_set.inputs()
    assert inputs.build(own_dataset).reused_shards == 5
    assert inputs.build(own_dataset, append=True).reused_shards == 5
    assert cli("finalize", own_dataset, "--folds", 2).code == 0
    assert cli("verify", own_dataset).code == 0
