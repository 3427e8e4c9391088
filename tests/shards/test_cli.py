"""The command line: what it prints, and one line with exit code 2 for whatever a person can mend."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from shards import console
from shards.errors import InputErrors

Cli = Callable[..., Any]
TreeOf = Callable[[Path], dict[str, str]]


def arguments(film_set: Any, out: Path, *more: object) -> list[object]:
    """A build of the films; options in `more` come last and win."""
    given = ["--dicom", film_set.dicom, "--rle", film_set.labels, "--out", out]
    return ["build", *given, "--image-size", 32, "--folds", 2, "--workers", 1, *more]


def test_the_three_commands_do_their_work_and_say_so(cli: Cli, tmp_path: Path) -> None:
    made = cli("synth", tmp_path / "films", "--images", 8, "--size", 64, "--positive-rate", 0.5, "--seed", 3)
    assert made.code == 0
    assert "8 films (4 positive" in made.out
    films, labels = tmp_path / "films" / "dicom-images", tmp_path / "films" / "train-rle.csv"
    argv = ["build", "--dicom", films, "--rle", labels, "--out", tmp_path / "out"]
    argv += ["--image-size", 32, "--folds", 2, "--workers", 1]
    built = cli(*argv)
    assert (built.code, built.err) == (0, "")
    assert "8 training films" in built.out
    assert "4 positive" in built.out
    assert "0 films without a label" in built.out
    assert "0 films rejected" in built.out
    assert "1 reused" in cli(*argv).out
    checked = cli("verify", tmp_path / "out")
    assert (checked.code, checked.err) == (0, "")
    assert "good" in checked.out


def test_the_patient_salt_lies_beside_the_shards_and_not_in_them(cli: Cli, film_set: Any, tmp_path: Path) -> None:
    assert cli(*arguments(film_set, tmp_path / "out")).code == 0
    salt = tmp_path / "out.salt"
    assert salt.stat().st_mode & 0o777 == 0o600
    other = tmp_path / "other"
    assert cli(*arguments(film_set, other, "--patient-salt-file", salt)).code == 0
    for name in ("samples.parquet", "manifest.json"):
        assert (other / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def bad_label(row: str) -> Callable[[Any, Path], list[object]]:
    def make(film_set: Any, folder: Path) -> list[object]:
        first = next(iter(film_set.rles))
        path = write(folder / "bad.csv", f"ImageId,EncodedPixels\n{row.replace('FILM', first)}\n")
        return ["--rle", path]

    return make


# What a person gets wrong, as options that follow a good build's, and the parts that the one line must name.
BAD_BUILDS: dict[str, tuple[Callable[[Any, Path], list[object]], list[str]]] = {
    "missing folder": (lambda f, d: ["--dicom", d / "gone"], ["gone", "--dicom"]),
    "missing test folder": (lambda f, d: ["--test-images", d / "gone"], ["gone", "--test-images"]),
    "empty folder": (lambda f, d: ["--images", d], ["--images", "no films"]),
    "missing csv": (lambda f, d: ["--rle", d / "gone.csv"], ["gone.csv", "--rle"]),
    "label without film": (bad_label("1.2.3.4, -1"), ["bad.csv", "line 2", "1.2.3.4"]),
    "odd count": (bad_label("FILM, 1 2 3"), ["bad.csv", "line 2", "odd"]),
    "negative skip": (bad_label("FILM, -1 2"), ["bad.csv", "line 2", "negative"]),
    "not a number": (bad_label("FILM, 1 x"), ["bad.csv", "line 2", "'x'"]),
    "past the end": (bad_label("FILM, 4095 2"), ["bad.csv", "line 2", "4097"]),
    "both kinds of label": (lambda f, d: ["--masks", f.dicom], ["--rle", "--masks"]),
    "unknown option": (lambda f, d: ["--colour", "red"], ["--colour"]),
    "not a number of folds": (lambda f, d: ["--folds", "many"], ["--folds", "many"]),
    "one fold": (lambda f, d: ["--folds", 1], ["--folds 1"]),
    "more folds than patients": (lambda f, d: ["--folds", 99], ["--folds 99"]),
    "holdout of all": (lambda f, d: ["--holdout", 1], ["--holdout"]),
    "holdout of nearly all": (lambda f, d: ["--holdout", 0.99], ["--holdout"]),
    "image size": (lambda f, d: ["--image-size", 0], ["--image-size 0"]),
    "empty shards": (lambda f, d: ["--samples-per-shard", 0], ["--samples-per-shard 0"]),
    "label size": (lambda f, d: ["--label-size", 0], ["--label-size 0"]),
    "negative label size": (lambda f, d: ["--label-size", -5], ["--label-size -5"]),
    "negative rejects": (lambda f, d: ["--max-rejects", -1], ["--max-rejects"]),
    "negative seed": (lambda f, d: ["--seed", -1], ["--seed"]),
    "missing salt": (lambda f, d: ["--patient-salt-file", d / "gone.salt"], ["gone.salt", "--patient-salt-file"]),
    "out is a file": (lambda f, d: ["--out", write(d / "file", "x")], ["file", "--out"]),
    "film given twice": (lambda f, d: ["--test-dicom", f.dicom], ["same image id", "rejected.csv"]),
}


@pytest.mark.parametrize("case", BAD_BUILDS)
def test_a_build_that_cannot_be_meant_gets_one_line_and_leaves_no_dataset(
    cli: Cli, film_set: Any, tmp_path: Path, case: str
) -> None:
    (tmp_path / "in").mkdir()
    options, parts = BAD_BUILDS[case]
    line = cli(*arguments(film_set, tmp_path / "out", *options(film_set, tmp_path / "in"))).only_line()
    assert line.startswith("error: ")
    assert all(part in line for part in parts), line
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("option", [("--folds", 1), ("--holdout", 2), ("--seed", -1)])
def test_options_of_the_split_are_refused_before_any_film_is_read(
    cli: Cli, film_set: Any, tmp_path: Path, option: tuple[str, float]
) -> None:
    assert option[0] in cli(*arguments(film_set, tmp_path / "out", *option)).only_line()
    assert not (tmp_path / "out").exists()


def test_no_films_and_no_labels_are_named(cli: Cli, film_set: Any, tmp_path: Path) -> None:
    assert "--dicom" in cli("build", "--out", tmp_path / "out").only_line()
    assert "--out" in cli("build", "--dicom", film_set.dicom).only_line()
    assert "--rle" in cli("build", "--dicom", film_set.dicom, "--out", tmp_path / "out").only_line()
    assert "bulid" in cli("bulid").only_line()
    assert list(tmp_path.iterdir()) == []


def test_a_label_of_a_test_film_is_named(cli: Cli, film_set: Any, tmp_path: Path) -> None:
    films = ["--dicom", film_set.test_dicom, "--test-dicom", film_set.dicom, "--rle", film_set.labels]
    line = cli("build", *films, "--out", tmp_path / "out").only_line()
    assert f"{film_set.labels} line 2" in line
    assert "is also a test film" in line
    assert list(tmp_path.iterdir()) == []


def test_another_build_into_a_finished_folder_changes_nothing(
    cli: Cli, film_set: Any, own_dataset: Path, tree_of: TreeOf
) -> None:
    before = tree_of(own_dataset)
    salt = own_dataset.with_name(f"{own_dataset.name}.salt")
    assert f"{salt}: no such patient salt" in cli(*arguments(film_set, own_dataset)).only_line()
    salt.write_text("another salt than that of the dataset\n")
    salt.chmod(0o600)
    line = cli(*arguments(film_set, own_dataset)).only_line()
    assert str(own_dataset) in line
    assert "--out" in line
    assert tree_of(own_dataset) == before


@pytest.mark.parametrize("command", ["build", "verify"])
def test_shards_of_another_format_version_are_named_and_kept(
    cli: Cli, film_set: Any, own_dataset: Path, tree_of: TreeOf, command: str
) -> None:
    path = own_dataset / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    before = tree_of(own_dataset)
    argv = arguments(film_set, own_dataset) if command == "build" else ["verify", own_dataset]
    line = cli(*argv).only_line()
    assert "manifest.json" in line
    assert "99" in line
    assert tree_of(own_dataset) == before


def test_an_unreadable_film_fails_the_build_with_its_list_written(
    cli: Cli, film_set: Any, tmp_path: Path, tree_of: TreeOf
) -> None:
    bad = tmp_path / "more" / "bad.dcm"
    bad.parent.mkdir()
    bad.write_bytes(b"no film")
    labels = write(tmp_path / "l.csv", film_set.labels.read_text() + "bad, -1\n")
    films = tree_of(film_set.dicom)
    argv = arguments(film_set, tmp_path / "out", "--dicom", bad.parent, "--rle", labels)
    line = cli(*argv).only_line()
    assert "bad.dcm" in line
    assert "rejected.csv" in line
    assert "bad.dcm" in (tmp_path / "out" / "rejected.csv").read_text()
    assert tree_of(film_set.dicom) == films
    allowed = cli(*argv, "--max-rejects", 1)
    assert allowed.code == 0
    assert "1 film rejected" in allowed.out


def test_a_finished_build_still_counts_its_rejects(cli: Cli, film_set: Any, tmp_path: Path) -> None:
    bad = tmp_path / "more" / "bad.dcm"
    bad.parent.mkdir()
    bad.write_bytes(b"no film")
    labels = write(tmp_path / "l.csv", film_set.labels.read_text() + "bad, -1\n")
    argv = arguments(film_set, tmp_path / "out", "--dicom", bad.parent, "--rle", labels)
    assert cli(*argv, "--max-rejects", 1).code == 0
    assert "--max-rejects 0" in cli(*argv).only_line()


def test_verify_names_a_damaged_file_and_exits_2(cli: Cli, own_dataset: Path) -> None:
    (own_dataset / "train-00002.tar").unlink()
    outcome = cli("verify", own_dataset)
    assert outcome.code == 2
    assert "train-00002.tar" in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize("kind", ["gone", "empty"])
def test_verify_of_no_dataset_is_one_line(cli: Cli, tmp_path: Path, kind: str) -> None:
    if kind == "empty":
        (tmp_path / kind).mkdir()
    assert str(tmp_path / kind) in cli("verify", tmp_path / kind).only_line()


@pytest.mark.parametrize(
    "option", [("--images", 0), ("--size", 8), ("--positive-rate", 1.5), ("--seed", -1), ("--images", "x")]
)
def test_synth_refuses_what_it_cannot_make(cli: Cli, tmp_path: Path, option: tuple[str, object]) -> None:
    line = cli("synth", tmp_path / "films", "--images", 2, "--size", 64, *option).only_line()
    assert option[0].strip("-").replace("-", "_") in line.replace("-", "_")
    assert not (tmp_path / "films").exists()


def test_synth_leaves_a_folder_that_is_not_empty_alone(cli: Cli, tmp_path: Path, tree_of: TreeOf) -> None:
    write(tmp_path / "mine.txt", "x")
    before = tree_of(tmp_path)
    assert str(tmp_path) in cli("synth", tmp_path, "--images", 2, "--size", 64).only_line()
    assert tree_of(tmp_path) == before


def test_several_errors_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def broken() -> None:
        raise InputErrors(["one: wrong;\nchange it", "two: wrong too"])

    assert console.run(broken, "broken", []) == console.EXIT_USAGE
    assert capsys.readouterr().err == "error: one: wrong; change it\nerror: two: wrong too\n"


def test_debug_adds_the_traceback(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("verify", tmp_path / "gone", "--debug")
    assert outcome.code == 2
    assert "Traceback" in outcome.err


@pytest.mark.parametrize("command", [[], ["synth"], ["build"], ["verify"]])
def test_every_command_takes_help(cli: Cli, command: list[str]) -> None:
    outcome = cli(*command, "--help")
    assert outcome.code == 0
    assert "Usage: python -m shards" in outcome.out


@pytest.mark.slow
def test_the_module_runs_on_its_own_and_prints_one_line_for_bad_input(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shards", "verify", str(tmp_path / "gone")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "gone") in done.stderr


def test_the_reader_imports_neither_torch_nor_the_training_package() -> None:
    code = "import sys, shards.dataset.table; print(sorted({'torch', 'pneumo_dist'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
