"""A fold's student learns from maps of that fold's networks alone, so that out-of-fold films stay out of fold."""

import shutil
from pathlib import Path

import pytest
from builders import tiny_experiment
from tiny_runs import ALONE, Trained
from tools.commands import ROOT, commands_of

from pneumo_dist.cli.app import app
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.maps.labels import labels_folder
from pneumo_dist.maps.store import Predictions, read_manifest
from pneumo_dist.runs.checkpoint import load_checkpoint
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.runs.lineage import check_unseen
from pneumo_dist.train.fold import check_resume, train_fold
from shards.console import EXIT_DONE, run
from shards.dataset.table import Shards
from shards.errors import InputError
from shards.files import write_json

STUDENT = tiny_experiment(
    {
        **{"image_size": 64, "micro_batch": 2, "global_batch": 4, "epochs": 1},
        "distillation": {"from": "ens", "share": 0.5},
    },
    name="student",
    data={"loader": "torch", "threads": 1},
)


def run_of(shards: Shards, runs: Path, fold: int = 0, experiment: Experiment = STUDENT) -> FoldRun:
    return FoldRun(experiment, fold, shards, runs / experiment.name / f"fold{fold}", ALONE)


@pytest.fixture
def runs(trained: Trained, tmp_path: Path) -> Path:
    """Runs of two experiments, and the maps of their ensemble for both folds."""
    folder = tmp_path / "runs"
    for name in ("plain", "head"):
        shutil.copytree(trained.runs / name, folder / name, symlinks=True)
    config = tmp_path / "ens.yaml"
    config.write_text("name: ens\nmembers: [{experiment: plain}, {experiment: head, top_k: 1}]\n")
    words = ["predict", "--config", config, "--shards", trained.shards.folder, "--runs", folder, "--split", "train"]
    assert run(app, "pneumo-dist", [*map(str, words), "--cpu"]) == EXIT_DONE
    return folder


def maps_of(runs: Path, fold: int) -> Path:
    return labels_folder(runs, "ens", "train", fold)


def test_maps_are_those_of_the_folds_training_films_by_its_networks(trained: Trained, runs: Path) -> None:
    for fold in (0, 1):
        predictions = Predictions(maps_of(runs, fold))
        manifest = predictions.manifest
        assert (manifest["split"], manifest["fold"]) == ("train", fold)
        assert {part["fold"] for part in manifest["parts"]} == {fold}
        train, _ = trained.shards.fold_rows(fold, always_train=True)
        assert [row["key"] for row in predictions.rows] == sorted(trained.shards.texts(train, "key"))
        assert {stage["experiment"] for stage in manifest["lineage"]} == {"plain", "head"}
        check_unseen(manifest["lineage"], "maps", trained.shards, fold)


def test_student_has_its_teachers_in_its_lineage_and_stays_out_of_fold(trained: Trained, runs: Path) -> None:
    made = run_of(trained.shards, runs)
    train_fold(made, Experiment.model_dump_json)
    state = load_checkpoint(CheckpointFolder(made.folder / "s0/checkpoints").top(1)[0].path)
    assert {each["experiment"] for each in state["lineage"]} == {"plain", "head", "student"}
    assert state["lineage"][-1]["maps_sha256"]
    check_unseen(state["lineage"], "student", trained.shards, 0)
    with pytest.raises(InputError, match="was trained on other films than fold 1"):
        check_unseen(state["lineage"], "student", trained.shards, 1)


def test_maps_of_another_folds_networks_are_refused(trained: Trained, runs: Path) -> None:
    shutil.rmtree(maps_of(runs, 0))
    shutil.copytree(maps_of(runs, 1), maps_of(runs, 0))
    with pytest.raises(InputError, match="its maps are not of split train for fold 0; predict again with --split"):
        check_resume(run_of(trained.shards, runs))
    # Also if the manifest claims to be of this fold: the networks have trained on its validation films.
    write_json(maps_of(runs, 0) / "manifest.json", {**read_manifest(maps_of(runs, 0)), "fold": 0})
    with pytest.raises(InputError, match=r"was trained on other films than fold 0 of .*; maps to learn from need"):
        check_resume(run_of(trained.shards, runs))


def test_out_of_fold_maps_are_refused(trained: Trained, runs: Path) -> None:
    """They are by networks that have seen this fold's validation films, and look like what a student wants."""
    words = ["predict", "--config", runs / "plain/fold0/config.yaml", "--shards", trained.shards.folder]
    out = ["--runs", runs, "--split", "oof", "--out", maps_of(runs, 0), "--cpu"]
    shutil.rmtree(maps_of(runs, 0))
    assert run(app, "pneumo-dist", list(map(str, [*words, *out]))) == EXIT_DONE
    with pytest.raises(InputError, match="its maps are not of split train for fold 0"):
        check_resume(run_of(trained.shards, runs))


def test_missing_maps_are_one_line_with_the_command(trained: Trained, runs: Path) -> None:
    shutil.rmtree(maps_of(runs, 0))
    with pytest.raises(InputError, match=r"no maps to learn from; write them with '.* --split train --fold 0'"):
        check_resume(run_of(trained.shards, runs))


def test_the_commands_of_the_page_run(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("plain", "head"):
        shutil.copytree(trained.runs / name, f"RUNS/{name}", symlinks=True)
    shutil.copytree(trained.shards.folder, "SHARDS")
    Path("blend.yaml").write_text("name: blend\nmembers: [{experiment: plain}, {experiment: head, top_k: 1}]\n")
    small = STUDENT.model_dump_json(by_alias=True).replace('"ens"', '"blend"')
    Path("small.yaml").write_text(small)
    lines = [each.words() for each in commands_of(ROOT / "docs/distillation.md") if not each.is_inline]
    assert len(lines) == 2
    for words in lines:
        assert run(app, "pneumo-dist", [*words[1:], "--cpu"]) == EXIT_DONE, words
    assert all(Path(f"RUNS/student/fold{fold}/s0/checkpoints/best").exists() for fold in (0, 1))
