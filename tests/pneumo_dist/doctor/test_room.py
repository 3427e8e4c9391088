"""What is written against what is free: sizes are those of real checkpoints, and too little room has a fix."""

from pathlib import Path
from typing import Any

import pytest
from builders import TINY_MODEL, tiny_experiment
from only_finding import only
from tiny_runs import HEAD, Trained
from tiny_state import save

from pneumo_dist.doctor.findings import Status
from pneumo_dist.doctor.room import (
    StageFiles,
    check_prediction_room,
    check_training_room,
    map_bytes,
    stage_files,
    state_bytes,
)
from pneumo_dist.network.fit import meta_model
from pneumo_dist.network.tensors import tensor_bytes
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.runs.checkpoint import load_checkpoint
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.train.fold import train_fold
from shards.dataset.table import Shards

RUNS = Path("runs")
GIB = 2**30


@pytest.mark.parametrize(
    "optim",
    [
        {"name": "adam"},
        {"name": "adamw", "ema_decay": 0.9},
        {"name": "adam", "swa_epochs": 1},
        {"name": "sgd", "momentum": 0.9},
        {"name": "sgd", "momentum": 0.0, "ema_decay": 0.9},
    ],
)
def test_bytes_are_those_of_the_tensors_in_a_real_checkpoint(
    films: Shards, tmp_path: Path, optim: dict[str, Any]
) -> None:
    experiment = tiny_experiment({"name": "a", "epochs": 1, "optim": {"lr": 0.01, **optim}})
    train_fold(FoldRun(experiment, 0, films, tmp_path, Ranks.alone()), lambda _: "")
    newest = CheckpointFolder(tmp_path / "a/checkpoints").files()[0]
    assert state_bytes(meta_model(experiment.model), experiment.stages[0]) == tensor_bytes(load_checkpoint(newest.path))


def test_bytes_are_those_of_a_real_file_up_to_its_headers(trained: Trained) -> None:
    """About twelve bytes a weight with Adam; a file has at most 512 more per tensor for names and alignment."""
    model = meta_model(HEAD.model)
    size = state_bytes(model, HEAD.stages[1])
    newest = CheckpointFolder(trained.runs / "head/fold0/main/checkpoints").files()[0]
    tensors = len(model.state_dict()) + 3 * len(list(model.parameters()))
    assert size < newest.path.stat().st_size < size + 512 * tensors
    assert size == pytest.approx(12 * sum(each.numel() for each in model.parameters()), rel=0.02)


def test_each_stage_keeps_its_best_and_newest_files() -> None:
    experiment = tiny_experiment(
        {"name": "a", "top_k": 1, "optim": {"name": "sgd"}},
        {"name": "b", "top_k": 3, "repeat": "until_no_gain"},
        model=TINY_MODEL,
    )
    model = meta_model(experiment.model)
    first, second = experiment.stages
    assert stage_files(model, experiment) == [
        StageFiles("a", 3, state_bytes(model, first)),
        StageFiles("b", 5, state_bytes(model, second), repeats=True),
    ]
    assert [parameter.grad for parameter in model.parameters()] == [None] * len(list(model.parameters()))


def test_room_of_a_training() -> None:
    files = [StageFiles("a", 3, GIB), StageFiles("b", 3, GIB)]
    folds = [Path("0"), Path("1")]
    fits = "20.0 GiB free at runs, checkpoints need 14.0 GiB (2 folds of 3 x 1.0 GiB in each of 2 stages (a, b))"
    only(check_training_room(files, RUNS, folds, 20 * GIB), Status.OK, fits)
    only(check_training_room(files, RUNS, folds, 14 * GIB), Status.OK)
    only(check_training_room(files, RUNS, folds, 14 * GIB - 1), Status.WARNING, "need 14.0 GiB", "prune", "lower top_k")
    only(check_training_room(files, RUNS, folds, GIB - 1), Status.ERROR, "one checkpoint needs 1.0 GiB", "prune")
    different = [StageFiles("a", 3, GIB), StageFiles("b", 5, 2 * GIB, repeats=True)]
    words = ("need at least 15.0 GiB (1 fold of 3 x 1.0 GiB in stage a, 5 x 2.0 GiB in stage b)",)
    only(check_training_room(different, RUNS, [], 20 * GIB), Status.OK, *words)
    many = [StageFiles(f"s{number}", 3, GIB) for number in range(9)]
    words = ("3 x 1.0 GiB in each of 9 stages (s0, s1, s2, s3 and others)",)
    only(check_training_room(many, RUNS, [], 99 * GIB), Status.OK, *words)
    unlike = [StageFiles(f"s{number}", number + 1, GIB) for number in range(9)]
    only(check_training_room(unlike, RUNS, [], 99 * GIB), Status.OK, "4 x 1.0 GiB in stage s3, ...)")


def test_files_that_are_there_count(tmp_path: Path) -> None:
    size = sum(file.path.stat().st_size for file in save(tmp_path / "fold0/a/checkpoints", 1, 2)) // 2
    files, folders = [StageFiles("a", 3, size)], [tmp_path / "fold0", tmp_path / "fold1"]
    assert check_training_room(files, RUNS, folders, 6 * size)[0].status is Status.OK
    assert check_training_room(files, RUNS, folders, 6 * size - 1)[0].status is Status.WARNING
    fewer = [StageFiles("a", 1, size)]  # the second file makes no room for another stage's
    assert check_training_room(fewer, RUNS, folders, 3 * size)[0].status is Status.OK
    assert check_training_room(fewer, RUNS, folders, 3 * size - 1)[0].status is Status.WARNING


def test_room_of_a_prediction() -> None:
    maps = map_bytes(4096, 512)
    assert maps == GIB
    only(check_prediction_room(maps, 0, RUNS, GIB), Status.OK, "1.0 GiB free at runs, predictions need at most 1.0 GiB")
    only(check_prediction_room(maps, GIB, RUNS, 2 * GIB), Status.OK, "at most 1.0 GiB, averaged weights 1.0 GiB")
    only(check_prediction_room(maps, GIB, RUNS, 2 * GIB - 1), Status.WARNING, "free some space", "another --runs")
