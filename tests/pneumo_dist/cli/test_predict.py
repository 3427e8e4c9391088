"""Bad input to predict, average and segment gives one line with the fix; new films of every kind are predicted."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from builders import SALT
from film_files import noise, write_film
from tiny_runs import PLAIN, Trained

from pneumo_dist.cli.app import app
from pneumo_dist.maps.store import Predictions
from shards.build.build import build
from shards.build.films import FilmFolders
from shards.build.options import BuildOptions
from shards.build.sources import find_sources
from shards.console import EXIT_DONE, EXIT_USAGE, run


def line_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail, and return the line that it prints."""
    assert run(app, "pneumo_dist", [str(argument) for argument in arguments]) == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["predict", "--shards", "s", "--runs", "r"], "give --config or --bundle"),
        (["predict", "--config", "c.yaml", "--bundle", "b", "--shards", "s"], "give --config or --bundle, not both"),
        (["predict", "--bundle", "b", "--out", "o"], "give --shards, --dicom or --images"),
        (["predict", "--bundle", "b", "--dicom", "d", "--images", "i", "--out", "o"], "or --images, not both"),
        (
            ["predict", "--bundle", "b", "--images", "d", "--split", "oof", "--out", "o"],
            "--images d: its films have no",
        ),
        (["predict", "--bundle", "b", "--dicom", "d", "--split", "oof", "--out", "o"], "its films have no folds"),
        (["predict", "--config", "c.yaml", "--dicom", "d"], "give --runs"),
        (["predict", "--bundle", "b", "--dicom", "d", "--block", "0"], "--block 0"),
        (["average", "--runs", "r"], "give --config"),
        (["segment", "nowhere.dcm", "--bundle", "b", "--out", "o"], "nowhere.dcm: no such file"),
        (["tune", "--config", "c.yaml", "--runs", "r"], "c.yaml: no such config"),
        (["submit", "--config", "c.yaml", "--runs", "r", "--rule", "best"], "'best' is not one of"),
        (["average", "--config", "c.yaml", "--runs", "r", "--rule", "best"], "'best' is not one of"),
        (["predict", "--config", "c.yaml", "--runs", "r", "--shards", "s", "--top-k", "0"], "0 is not in the range"),
        (["predict", "--config", "c.yaml", "--runs", "r", "--shards", "s"], "c.yaml: no such config"),
    ],
)
def test_missing_and_contradictory_options_are_named(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named in line_of(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_bundle_does_not_predict_out_of_fold(
    trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "plain.yaml"
    config.write_text(PLAIN.model_dump_json())
    bundle = ("average", "--cpu", "--config", config, "--runs", trained.runs, "--bundle", tmp_path / "b")
    assert "no thresholds; run 'python -m pneumo_dist tune'" in line_of(capsys, *bundle)
    assert not (tmp_path / "b").exists()
    blend = tmp_path / "blend.yaml"
    blend.write_text("name: x\nmembers: [{experiment: plain}]\nthresholds: {top: 0.5, area: 9, bottom: 0.4}\n")
    arguments = ["average", "--cpu", "--config", blend, "--runs", trained.runs, "--bundle", tmp_path / "b"]
    assert run(app, "pneumo_dist", list(map(str, arguments))) == EXIT_DONE
    assert "bundle of 4 networks" in capsys.readouterr().out
    oof = ("predict", "--cpu", "--bundle", tmp_path / "b", "--shards", trained.shards.folder, "--out", tmp_path / "o")
    assert "predictions of single folds are made with --config and --runs" in line_of(capsys, *oof, "--split", "oof")
    assert not (tmp_path / "o").exists()


def test_members_that_average_different_checkpoints_have_separate_results(
    trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "two.yaml"
    member = "experiment: plain, average: weights, folds: [0]"
    config.write_text(f"name: two\nmembers: [{{{member}, top_k: 1}}, {{{member}, top_k: 2}}]\n")
    arguments = ["average", "--cpu", "--config", config, "--runs", trained.runs, "--shards", trained.shards.folder]
    assert run(app, "pneumo_dist", list(map(str, arguments))) == EXIT_DONE
    names = [line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()]
    made = {path.name for path in (trained.runs / "two").rglob("step-*.pt")}
    assert len(set(names)) == 2 and made == set(names)


def test_files_instead_of_folders_are_named_before_any_work(
    trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    blend, bundle, film = tmp_path / "blend.yaml", tmp_path / "b", tmp_path / "film.dcm"
    blend.write_text("name: x\nmembers: [{experiment: plain}]\nthresholds: {top: 0.5, area: 9, bottom: 0.4}\n")
    write_film(film, noise(64, 64))
    average = ("average", "--cpu", "--config", blend, "--runs", trained.runs, "--bundle")
    assert f"--bundle {tmp_path}: is a folder; give the file to write" in line_of(capsys, *average, tmp_path)
    assert run(app, "pneumo_dist", list(map(str, (*average, bundle)))) == EXIT_DONE
    capsys.readouterr()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for command in (("segment", film), ("predict", "--shards", trained.shards.folder)):
        line = line_of(capsys, command[0], "--cpu", *command[1:], "--bundle", bundle, "--out", blend)
        assert line == f"error: --out {blend}: {blend} is a file; give a folder"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_damaged_bundle_writes_nothing(trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    blend, bundle, out = tmp_path / "blend.yaml", tmp_path / "b", tmp_path / "out"
    blend.write_text("name: x\nmembers: [{experiment: plain}]\nthresholds: {top: 0.5, area: 9, bottom: 0.4}\n")
    film = write_film(tmp_path / "film.dcm", noise(64, 64))
    arguments = ["average", "--cpu", "--config", blend, "--runs", trained.runs, "--bundle", bundle]
    assert run(app, "pneumo_dist", list(map(str, arguments))) == EXIT_DONE
    capsys.readouterr()
    whole = bundle.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    for content in (whole[:-100], whole[: len(whole) // 2], b"", bytes(flipped)):
        bundle.write_bytes(content)
        for command in (("segment", film), ("predict", "--shards", trained.shards.folder)):
            line = line_of(capsys, command[0], "--cpu", *command[1:], "--bundle", bundle, "--out", out)
            assert line.startswith(f"error: {bundle}: damaged or not a bundle")
            assert not list(out.rglob("*.tar")) + list(out.rglob("*.png")) + list(out.rglob("*.dcm"))


def test_changed_or_empty_folder_of_new_films_is_named(
    trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    blend, bundle, films = tmp_path / "blend.yaml", tmp_path / "b", tmp_path / "films"
    blend.write_text("name: x\nmembers: [{experiment: plain}]\nthresholds: {top: 0.5, area: 9, bottom: 0.4}\n")
    average = ["average", "--cpu", "--config", blend, "--runs", trained.runs, "--bundle", bundle]
    assert run(app, "pneumo_dist", list(map(str, average))) == EXIT_DONE
    arguments = ["predict", "--cpu", "--bundle", bundle, "--dicom", films, "--out", tmp_path / "new/maps"]
    films.mkdir()
    capsys.readouterr()
    assert line_of(capsys, *arguments) == f"error: {films}: holds no films; give a folder with DICOM files"
    assert not (tmp_path / "new").exists()
    write_film(films / "one.dcm", noise(64, 64))
    assert run(app, "pneumo_dist", list(map(str, arguments))) == EXIT_DONE
    write_film(films / "two.dcm", noise(64, 64, seed=1))
    capsys.readouterr()
    line = line_of(capsys, *arguments)
    assert line == f"error: {tmp_path}/new/films: was built from other films; remove it, or give another --out"


def test_warnings_of_new_films_are_printed_and_strict_refuses_them(
    trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    blend, bundle, films, out = (tmp_path / name for name in ("blend.yaml", "b", "films", "out"))
    blend.write_text("name: x\nmembers: [{experiment: plain}]\nthresholds: {top: 0.5, area: 9, bottom: 0.4}\n")
    average = ["average", "--cpu", "--config", blend, "--runs", trained.runs, "--bundle", bundle]
    assert run(app, "pneumo_dist", list(map(str, average))) == EXIT_DONE
    films.mkdir()
    good = write_film(films / "good.dcm", noise(64, 64))
    unsure = write_film(films / "unsure.dcm", noise(64, 64, seed=1), BodyPartExamined="")
    warning = f"warning: {unsure}: no BodyPartExamined: taken as a chest film"
    capsys.readouterr()
    segment = ["segment", "--cpu", good, unsure, "--bundle", bundle, "--out", out]
    assert run(app, "pneumo_dist", list(map(str, segment))) == EXIT_DONE
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [warning]
    found = {line["film"]: line["warnings"] for line in map(json.loads, printed.out.splitlines())}
    assert found == {"good.dcm": [], "unsure.dcm": ["no BodyPartExamined: taken as a chest film"]}
    predict = ["predict", "--cpu", "--bundle", bundle, "--dicom", films, "--out"]
    assert run(app, "pneumo_dist", [*map(str, predict), str(tmp_path / "new/maps")]) == EXIT_DONE
    assert warning in capsys.readouterr().err
    assert run(app, "pneumo_dist", [*map(str, segment), "--strict"]) == EXIT_USAGE
    printed = capsys.readouterr()
    assert "unsure.dcm: refused, no BodyPartExamined" in printed.err and printed.out.count("\n") == 1
    assert run(app, "pneumo_dist", [*map(str, predict), str(tmp_path / "strict/maps"), "--strict"]) == EXIT_DONE
    assert "unsure.dcm: refused, no BodyPartExamined" in capsys.readouterr().err
    assert len(Predictions(tmp_path / "strict/maps")) == 1
    shards = ("predict", "--cpu", "--bundle", bundle, "--shards", trained.shards.folder, "--out", tmp_path / "s")
    assert "go with --dicom or --images" in line_of(capsys, *shards, "--strict")
    assert "go with --dicom or --images" in line_of(capsys, *shards, "--max-pixels", 5000)


@pytest.mark.parametrize(
    ("tags", "option"),
    [
        ({"ViewPosition": "LATERAL"}, ["--any-film"]),
        ({"BurnedInAnnotation": "YES"}, ["--allow-burned-in"]),
        ({}, ["--max-pixels", "4096"]),
    ],
)
def test_the_option_named_by_a_refusal_admits_the_film(
    trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path, tags: dict[str, str], option: list[str]
) -> None:
    blend, bundle, film = (tmp_path / name for name in ("blend.yaml", "b", "films/one.dcm"))
    blend.write_text("name: x\nmembers: [{experiment: plain}]\nthresholds: {top: 0.5, area: 9, bottom: 0.4}\n")
    average = ["average", "--cpu", "--config", blend, "--runs", trained.runs, "--bundle", bundle]
    assert run(app, "pneumo_dist", list(map(str, average))) == EXIT_DONE
    film.parent.mkdir()
    write_film(film, noise(64, 64), **tags)
    stricter = ["--max-pixels", "4095"] if option[0] == "--max-pixels" else []
    predict = ["predict", "--cpu", "--bundle", bundle, "--dicom", film.parent, "--out", tmp_path / "new/maps"]
    segment = ["segment", "--cpu", film, "--bundle", bundle, "--out", tmp_path / "out"]
    for command in (predict, segment):
        arguments = list(map(str, command))
        capsys.readouterr()
        assert run(app, "pneumo_dist", [*arguments, *stricter]) == EXIT_USAGE
        assert f"pass {' '.join(option)} to accept it" in capsys.readouterr().err
        assert run(app, "pneumo_dist", [*arguments, *option]) == EXIT_DONE


def test_pictures_are_predicted_like_the_films_of_a_build(
    trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    blend, bundle, folder, out = (tmp_path / name for name in ("blend.yaml", "b", "pictures", "new/maps"))
    blend.write_text("name: x\nmembers: [{experiment: plain}]\nthresholds: {top: 0.5, area: 9, bottom: 0.4}\n")
    average = ["average", "--cpu", "--config", blend, "--runs", trained.runs, "--bundle", bundle]
    assert run(app, "pneumo_dist", list(map(str, average))) == EXIT_DONE
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.jpg")):
        assert cv2.imwrite(str(folder / name), noise(70, 64, seed=number))
    (folder / "empty.png").write_bytes(b"")
    write_film(folder / "film.dcm", noise(64, 64))
    capsys.readouterr()
    predict = ["predict", "--cpu", "--bundle", bundle, "--images", folder, "--out", out]
    assert run(app, "pneumo_dist", list(map(str, predict))) == EXIT_DONE
    printed = capsys.readouterr()
    assert printed.err == f"warning: {folder}/empty.png: refused, the image file is empty; export it again\n"
    new = Predictions(out)
    assert sorted(row["image_id"] for row in new.rows) == ["a", "b"]
    (folder / "empty.png").unlink()
    sources = find_sources(FilmFolders(test_images=[folder]))
    build(sources, tmp_path / "shards", BuildOptions(image_size=64, duplicate_distance=None), SALT)
    same = ["predict", "--cpu", "--bundle", bundle, "--shards", tmp_path / "shards", "--out", tmp_path / "same"]
    assert run(app, "pneumo_dist", list(map(str, same))) == EXIT_DONE
    built = Predictions(tmp_path / "same")
    assert [row["image_id"] for row in built.rows] == [row["image_id"] for row in new.rows]
    for row in range(2):
        np.testing.assert_array_equal(built.p8(row), new.p8(row))
