"""What a build says about groups and folds that were made as asked and are not what anyone wants."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shards.build.doubts import placeholders, split_doubts
from shards.build.options import BuildOptions
from shards.build.split import split_table
from shards.dataset.keys import patient_group
from shards.dataset.manifest import read_manifest
from shards.dataset.table import SCHEMA, Shards

SALT = b"a salt for the tests only"
OPTIONS = BuildOptions(folds=3, duplicate_distance=None)


def table_of(patients: list[str], positive: list[bool], **changes: list[Any]) -> pa.Table:
    """A table of films as a build leaves it before the split; an empty patient is a film alone."""
    count = len(patients)
    columns: dict[str, list[Any]] = {
        "image_id": [f"film{number}" for number in range(count)],
        "film_group": [patient_group(name or f"film film{number}", SALT) for number, name in enumerate(patients)],
        "perceptual_hash": [np.random.default_rng(number).bytes(32).hex() for number in range(count)],
        "split": ["train"] * count,
        "has_mask": positive,
        "mask_area": [int(each) * (number + 1) for number, each in enumerate(positive)],
        "label_height": [100] * count,
        "label_width": [200] * count,
        **changes,
    }
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return pa.table({f.name: pa.array([row.get(f.name) for row in rows], f.type) for f in SCHEMA})


def doubts_of(table: pa.Table, options: BuildOptions = OPTIONS, salt: bytes = SALT) -> list[str]:
    return split_doubts(split_table(table, options, salt), options, salt)


def numbered(count: int) -> list[str]:
    return [f"patient {number}" for number in range(count)]


def test_good_films_leave_no_doubt() -> None:
    assert doubts_of(table_of(numbered(30), [number % 2 == 0 for number in range(30)])) == []


@pytest.mark.parametrize(
    "word", ["ANONYMOUS", "Anonymous", "anon", "UNKNOWN", "None", "0", "000000", "N/A", "XXXX", "-"]
)
def test_a_patient_id_that_names_nobody_is_named(word: str) -> None:
    patients = [word] * 4 + numbered(26)
    (doubt,) = doubts_of(table_of(patients, [number % 2 == 0 for number in range(30)]))
    assert doubt == (
        f"4 films with the patient id {word}, which identifies nobody: they are one patient; "
        "say with --groups which films belong together"
    )


def test_a_patient_with_one_film_or_a_proper_id_is_no_placeholder() -> None:
    patients = ["ANONYMOUS", "UNKNOWN", "ANON-0017", "ANON-0017", "P0", "P0", "Nonez", "Nonez", *numbered(22)]
    assert doubts_of(table_of(patients, [number % 2 == 0 for number in range(30)])) == []
    assert len(set(placeholders())) == len(list(placeholders())) < 2000


def test_a_frequent_id_is_counted_and_never_named() -> None:
    patients = ["DOE^JANE 1970"] * 13 + numbered(17)
    (doubt,) = doubts_of(table_of(patients, [number % 2 == 0 for number in range(30)]))
    assert doubt.startswith("13 films with one patient id, more than a fold's share of 10.0: if it identifies nobody")
    assert "DOE" not in doubt and "--groups" in doubt


def test_films_without_an_id_are_counted() -> None:
    patients = [""] * 5 + numbered(25)
    (doubt,) = doubts_of(table_of(patients, [number % 2 == 0 for number in range(30)]))
    assert doubt.startswith("5 films without a patient id: each is a separate group")


def test_test_films_and_an_absent_salt_tell_of_no_patients() -> None:
    patients = ["ANONYMOUS"] * 4 + numbered(26)
    positive = [number % 2 == 0 for number in range(30)]
    tested = table_of(patients, positive, split=["test"] * 4 + ["train"] * 26)
    assert doubts_of(tested) == []
    assert split_doubts(split_table(table_of(patients, positive), OPTIONS, SALT), OPTIONS, b"") == []


def test_films_that_look_alike_and_fill_more_than_a_fold_are_told() -> None:
    table = table_of(numbered(30), [n % 2 == 0 for n in range(30)], perceptual_hash=["0f" * 32] * 12 + ["f0" * 32] * 18)
    found = doubts_of(table, replace(OPTIONS, folds=2, duplicate_distance=3))
    assert found == [
        "18 films of one group, more than a fold's share of 15.0, as films of several patients look alike: "
        "--duplicate-distance -1 does not group them"
    ]


def test_folds_without_a_positive_or_a_film_are_told(tmp_path: Path) -> None:
    path = tmp_path / "folds.csv"
    path.write_text(
        "image_id,fold\n" + "".join(f"film{n},{fold}\n" for n, fold in enumerate([0, 0, 1, 1, 3, 3, 5, -1]))
    )
    table = table_of(numbered(8), [True, False, False, False, False, False, True, False])
    assert doubts_of(table, replace(OPTIONS, folds_csv=path)) == [
        "folds 2 and 4 have no film: give fewer with --folds, or other groups with --groups",
        "folds 1 and 3 have no film with a pneumothorax, and training refuses to validate there: "
        "give fewer with --folds, or other groups with --groups",
        "the holdout has no film with a pneumothorax: give a larger share with --holdout, or another --seed",
    ]


def test_a_dataset_without_any_positive_says_so_once() -> None:
    assert doubts_of(table_of(numbered(9), [False] * 9)) == ["no labelled film has a pneumothorax"]


def test_films_that_all_train_in_every_fold_leave_none_to_validate_on(tmp_path: Path) -> None:
    path = tmp_path / "folds.csv"
    path.write_text("".join(f"film{number},stage_2\n" for number in range(4)))
    (doubt,) = doubts_of(table_of(numbered(4), [True, False] * 2), replace(OPTIONS, folds_csv=path))
    assert doubt == "every film trains in every fold: none is left to validate on"


def test_a_build_tells_them_and_another_split_tells_its_own(cli: Any, write_film: Any, tmp_path: Path) -> None:
    """Ten films of ANONYMOUS and six of patients of their own, as archives without names give them out."""
    rng = np.random.default_rng(2)
    rows = ["ImageId,EncodedPixels"]
    for number in range(16):
        film = rng.integers(0, 256, (64, 64), np.uint8)
        patient = "ANONYMOUS" if number < 10 else f"P{number}"
        write_film(
            tmp_path / f"d/1.2.{number}.dcm", film, PatientID=patient, ViewPosition="PA", BodyPartExamined="CHEST"
        )
        rows.append(f"1.2.{number}.dcm,{'5 3' if number % 2 else -1}")
    (tmp_path / "l.csv").write_text("\n".join(rows))
    out, common = tmp_path / "out", ("--dicom", tmp_path / "d", "--rle", tmp_path / "l.csv", "--image-size", 64)
    first = cli("build", *common, "--out", out, "--folds", 5, "--workers", 1)
    assert first.code == 0
    assert "warning: 10 films with the patient id ANONYMOUS, which identifies nobody" in first.out
    assert re.search(r"warning: folds? [0-9, and]+ ha(s|ve) no film with a pneumothorax", first.out)
    assert read_manifest(out)["doubts"] == re.findall("warning: (.*(?:ANONYMOUS|pneumothorax).*)", first.out)
    again = cli("build", *common, "--out", out, "--folds", 5, "--workers", 1)
    assert "ANONYMOUS" in again.out, "whoever runs it again is told again"
    fewer = cli("finalize", out, "--folds", 2)
    assert "ANONYMOUS" in fewer.out and "pneumothorax, and training" not in fewer.out
    (tmp_path / "groups.csv").write_text("".join(f"1.2.{number},{number // 2}\n" for number in range(16)))
    grouped = cli("finalize", out, "--folds", 3, "--groups", tmp_path / "groups.csv")
    assert grouped.code == 0 and "warning" not in grouped.out
    assert read_manifest(out)["doubts"] == []
    assert len(set(Shards(out).column("group"))) == 8


def test_labels_of_one_kind_are_told() -> None:
    assert "every labelled film has a pneumothorax: training also needs films without one" in doubts_of(
        table_of(numbered(30), [True] * 30)
    )
    assert doubts_of(table_of(numbered(30), [False] * 30)) == ["no labelled film has a pneumothorax"]


@pytest.mark.parametrize(("smallest", "is_doubted"), [(10_001, True), (10_000, False)])
def test_masks_that_all_cover_more_than_half_are_told(smallest: int, is_doubted: bool) -> None:
    positive = [number % 2 == 0 for number in range(30)]
    areas = [15_000 if each else 0 for each in positive]
    areas[4] = smallest
    doubt = "all 15 masks cover more than half of their films: are they inverted?"
    assert doubts_of(table_of(numbered(30), positive, mask_area=areas)) == [doubt] * is_doubted
