"""A fold learns from films without labels by maps of networks that have not seen its other films, and of no others."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import SALT, tiny_experiment
from damage import flip_bit
from tiny_runs import ALONE
from tools.commands import ROOT, commands_of
from tools.equality import run_differences

from pneumo_dist.cli.app import app
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.maps.labels import labels_folder
from pneumo_dist.maps.store import Predictions, read_manifest
from pneumo_dist.runs.checkpoint import load_checkpoint
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.runs.lineage import check_unseen
from pneumo_dist.train.fold import check_resume, train_fold
from pneumo_dist.train.step import Learner, Step
from shards.__main__ import app as shards_app
from shards.build.assemble import finalize
from shards.console import EXIT_DONE, run
from shards.dataset.table import Shards
from shards.errors import InputError
from shards.files import write_json
from shards.phantom.dataset import synthesize

TEACHER = tiny_experiment(
    {"name": "main", "image_size": 64, "epochs": 1, "top_k": 2}, name="plain", data={"loader": "torch", "threads": 1}
)


def student(name: str = "student", **unlabelled: Any) -> Experiment:
    stage = {"image_size": 64, "micro_batch": 2, "global_batch": 4, "epochs": 2, "save_every": 1}
    given = {"unlabelled": {"share": 0.5, **(unlabelled or {"from": "plain/main"})}, "optim": {"ema_decay": 0.9}}
    return tiny_experiment({**stage, **given}, name=name, data={"loader": "torch", "threads": 1})


def run_of(experiment: Experiment, shards: Shards, runs: Path, fold: int = 0) -> FoldRun:
    return FoldRun(experiment, fold, shards, runs / experiment.name / f"fold{fold}", ALONE)


def train(experiment: Experiment, shards: Shards, runs: Path, fold: int = 0) -> Path:
    made = run_of(experiment, shards, runs, fold)
    train_fold(made, Experiment.model_dump_json)
    return made.folder


def predicted(shards: Shards, runs: Path, *options: object) -> int:
    line = ["predict", "--config", runs / "plain/fold0/config.yaml", "--shards", shards.folder, "--runs", runs, "--cpu"]
    return run(app, "pneumo-dist", [*map(str, line), "--split", "unlabelled", *map(str, options)])


@pytest.fixture(scope="module")
def teachers(half_labelled: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both folds of the plain experiment, and their pseudo-labels."""
    runs = tmp_path_factory.mktemp("teachers")
    for fold in (0, 1):
        train(TEACHER, half_labelled, runs, fold)
    assert predicted(half_labelled, runs) == EXIT_DONE
    return runs


@pytest.fixture
def runs(teachers: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(teachers, tmp_path / "runs"))


def maps_of(runs: Path, fold: int) -> Path:
    return labels_folder(runs, "plain/main", "unlabelled", fold)


def test_each_fold_has_maps_by_its_own_networks(half_labelled: Shards, teachers: Path) -> None:
    for fold in (0, 1):
        predictions = Predictions(maps_of(teachers, fold))
        manifest = predictions.manifest
        assert (manifest["split"], manifest["fold"]) == ("unlabelled", fold)
        assert {part["fold"] for part in manifest["parts"]} == {fold}
        assert sum(part["weight"] for part in manifest["parts"]) == pytest.approx(1)
        assert [stage["stage"] for stage in manifest["lineage"]] == ["main"]
        check_unseen(manifest["lineage"], "maps", half_labelled, fold)
        keys = half_labelled.texts(half_labelled.unlabelled_rows(fold), "key")
        assert [row["key"] for row in predictions.rows] == sorted(keys)
    first, second = (Predictions(maps_of(teachers, fold)) for fold in (0, 1))
    assert not any(np.array_equal(first.p8(film), second.p8(film)) for film in range(len(first)))


def test_fold_learns_from_its_maps_and_has_its_teachers_in_its_lineage(half_labelled: Shards, runs: Path) -> None:
    folder = train(student(), half_labelled, runs)
    state = load_checkpoint(CheckpointFolder(folder / "s0/checkpoints").top(1)[0].path)
    names = [(each["experiment"], each["stage"]) for each in state["lineage"]]
    assert names == [("plain", "main"), ("student", "s0")]
    assert [bool(each["maps_sha256"]) for each in state["lineage"]] == [False, True]
    check_unseen(state["lineage"], "student", half_labelled, 0)
    # With other maps it would have other weights.
    train(student("other", mean_teacher={}), half_labelled, runs)
    assert predicted(half_labelled, runs, "--config", folder / "config.yaml", "--fold", 0) == EXIT_DONE
    assert labels_folder(runs, "student/s0", "unlabelled", 0).exists()


def test_maps_of_another_fold_are_refused(half_labelled: Shards, runs: Path) -> None:
    shutil.rmtree(maps_of(runs, 0))
    shutil.copytree(maps_of(runs, 1), maps_of(runs, 0))
    with pytest.raises(InputError, match=r"json: its maps are not of split unlabelled for fold 0; predict again"):
        train(student(), half_labelled, runs)
    # Also if the manifest claims to be of this fold: the networks have seen its validation films.
    manifest = read_manifest(maps_of(runs, 0))
    write_json(maps_of(runs, 0) / "manifest.json", {**manifest, "fold": 0})
    with pytest.raises(InputError, match=r"main was trained on other films than fold 0 of .*; maps to learn from"):
        train(student(), half_labelled, runs)


def test_maps_of_other_folds_of_the_same_films_are_refused(half_labelled: Shards, runs: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(half_labelled.folder, tmp_path / "shards"))
    finalize(shards, {"seed": 5}, SALT)
    with pytest.raises(
        InputError, match=r"was trained on other films than fold 0 of .*; maps to learn from need the shards"
    ):
        train(student(), Shards(shards), runs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lineage": None}, r"manifest.json: lineage: .*predict again with --split unlabelled --fold 0"),
        ({"lineage": [{"experiment": "plain"}]}, r"manifest.json: lineage"),
        ({"split": "test"}, "its maps are not of split unlabelled for fold 0"),
        ({"predictions_sha256": "0" * 64}, "predict again"),
    ],
)
def test_changed_manifest_is_refused(half_labelled: Shards, runs: Path, change: dict[str, Any], message: str) -> None:
    path = maps_of(runs, 0) / "manifest.json"
    content = {name: value for name, value in {**json.loads(path.read_text()), **change}.items() if value is not None}
    write_json(path, content)
    with pytest.raises(InputError, match=message):
        train(student(), half_labelled, runs)


def test_missing_and_damaged_maps_are_one_line(half_labelled: Shards, runs: Path) -> None:
    flip_bit(maps_of(runs, 0) / "predictions.parquet")
    with pytest.raises(InputError, match=r"predictions.parquet"):
        train(student(), half_labelled, runs)
    shutil.rmtree(maps_of(runs, 0))
    expected = r"fold0/predictions: no maps to learn from; write them with '.* --split unlabelled --fold 0'"
    with pytest.raises(InputError, match=expected):
        check_resume(run_of(student(), half_labelled, runs))


def test_network_that_has_seen_the_fold_predicts_no_pseudo_labels(
    half_labelled: Shards, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(runs / "plain/unlabelled")
    shutil.rmtree(runs / "plain/fold0")
    shutil.copytree(runs / "plain/fold1", runs / "plain/fold0")
    assert predicted(half_labelled, runs, "--fold", 0) != EXIT_DONE
    assert "was trained on other films than fold 0" in capsys.readouterr().err
    assert not (maps_of(runs, 0) / "manifest.json").exists()


class Killed(Exception):
    pass


@pytest.mark.parametrize("unlabelled", [{"from": "plain/main"}, {"mean_teacher": {"ramp_up_epochs": 1}}])
def test_killed_stage_resumes_with_the_same_bits(
    half_labelled: Shards, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unlabelled: dict[str, Any]
) -> None:
    again = Path(shutil.copytree(runs, tmp_path / "again"))
    whole = train(student(**unlabelled), half_labelled, runs)
    step, taken = Learner.step, []

    def until_the_fourth(*arguments: Any) -> Step:
        taken.append(1)
        if len(taken) == 4:
            raise Killed
        return step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Learner, "step", until_the_fourth)
        train(student(**unlabelled), half_labelled, again)
    assert max(file.step for file in CheckpointFolder(again / "student/fold0/s0/checkpoints").files()) == 3
    assert run_differences(whole, train(student(**unlabelled), half_labelled, again)) == []


def test_resume_with_other_maps_is_refused(half_labelled: Shards, runs: Path) -> None:
    folder = train(student(), half_labelled, runs)
    shutil.rmtree(maps_of(runs, 0))
    assert predicted(half_labelled, runs, "--fold", 0, "--no-hflip") == EXIT_DONE
    assert folder.exists()
    with pytest.raises(InputError, match="trained on other films without labels or maps to learn from; use"):
        check_resume(run_of(student(), half_labelled, runs))


def test_the_commands_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    films = synthesize(Path("films"), images=12, size=64, positive_rate=0.5, seed=3)
    more = synthesize(Path("more"), images=10, size=64, positive_rate=0.5, seed=5)
    for path, name in ((films.dicom_dir, "DIR"), (films.labels_csv, "CSV"), (more.dicom_dir, "MORE")):
        path.rename(name)
    build, *lines = [each.words() for each in commands_of(ROOT / "docs/unlabelled.md") if not each.is_inline]
    small = ["--image-size", "64", "--folds", "2", "--workers", "1"]
    assert run(shards_app, "pneumo-shards", [*build[1:], *small]) == EXIT_DONE
    Path("C").write_text(TEACHER.model_copy(update={"name": "C"}).model_dump_json())
    Path("student.yaml").write_text(student(**{"from": "C/main"}).model_dump_json())
    for words in lines:
        assert run(app, "pneumo-dist", [*words[1:], "--cpu"]) == EXIT_DONE, words
    out = capsys.readouterr().out
    assert "maps of unlabelled films for fold 1: RUNS/C/unlabelled/main/fold1/predictions" in out
    assert "10 films for training without labels; 0 more look like another film" in out
    assert all((tmp_path / f"RUNS/student/fold{fold}/s0/checkpoints/best").exists() for fold in (0, 1))
