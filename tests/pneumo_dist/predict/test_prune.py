"""Pruning keeps what predicts and what training resumes from, and removes the rest or nothing."""

import dataclasses
import json
import re
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import flip_bit
from tiny_runs import ALONE, Trained, two_stages
from tools.equality import run_differences

from pneumo_dist.cli.app import app
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.predict.prune import Pruning, plan_pruning, prune, run_folders
from pneumo_dist.ranks.stop import Preempted, Request, StopAgreement
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.runs.heartbeat import LOST_SECONDS, hold_run_folder
from pneumo_dist.train import stage as trainer
from pneumo_dist.train.fold import train_fold
from pneumo_dist.train.validation import Validation, validate
from shards.console import EXIT_DONE, EXIT_USAGE, run
from shards.errors import InputError

MODEL = {"arch": "fcn", "fcn": {"widths": (4, 6, 8), "norm": True}}
# With a top_k of 2, the first two epochs are the best, and the last two the newest.
FALLING = [0.9, 0.8, 0.2, 0.1]
FIRST, SECOND, THIRD, LAST = 0, 1, 2, 3


def script(monkeypatch: pytest.MonkeyPatch, upcoming: list[float]) -> None:
    """Let these be the scores of the next validated epochs."""

    def scripted(*arguments: Any, **options: Any) -> Validation:
        result = validate(*arguments, **options)
        return dataclasses.replace(result, best=dataclasses.replace(result.best, dice=upcoming.pop(0)))

    monkeypatch.setattr(trainer, "validate", scripted)


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The scores of the next validated epochs."""
    upcoming: list[float] = []
    script(monkeypatch, upcoming)
    return upcoming


def stages_of(**second: Any) -> Experiment:
    experiment = two_stages("plain", MODEL)
    early, main = (stage.model_dump() for stage in experiment.stages)
    stages = [{**early, "epochs": 4}, {**main, "epochs": 4, **second}]
    return Experiment.model_validate({**experiment.model_dump(), "stages": stages})


def train(experiment: Experiment, trained: Trained, runs: Path, fold: int = 0) -> Path:
    folder = runs / experiment.name / f"fold{fold}"
    train_fold(FoldRun(experiment, fold, trained.shards, folder, ALONE), Experiment.model_dump_json)  # JSON is YAML
    return folder


@pytest.fixture(scope="module")
def two_folds(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages and two folds, with four checkpoints in each."""
    runs = tmp_path_factory.mktemp("two_folds")
    with pytest.MonkeyPatch.context() as patch:
        script(patch, FALLING * 4)
        for fold in (0, 1):
            train(stages_of(), trained, runs, fold)
    return runs


@pytest.fixture
def runs(two_folds: Path, tmp_path: Path) -> Path:
    """A copy of the run, to change."""
    return Path(shutil.copytree(two_folds, tmp_path / "runs", symlinks=True))


def names_in(fold: Path, stage: str) -> list[str]:
    """The names of a stage's checkpoints, oldest first."""
    return sorted(file.path.name for file in CheckpointFolder(fold / stage / "checkpoints").files())


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(*arguments: object) -> int:
    return run(app, "pneumo_dist", [str(argument) for argument in arguments])


def test_predictions_have_the_same_bytes_before_and_after(
    runs: Path, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "plain.yaml"
    config.write_text(stages_of().model_dump_json())
    folds = run_folders(runs)
    before = {(fold, stage): names_in(fold, stage) for fold in folds for stage in ("early", "main")}
    size = sum(path.stat().st_size for path in runs.rglob("step-*.pt"))

    def predict(out: Path) -> dict[str, bytes]:
        for split in ("oof", "test"):
            options = ("--split", split, "--shards", trained.shards.folder, "--out", out / split)
            assert call("predict", "--cpu", "--config", config, "--runs", runs, *options) == EXIT_DONE
        return content_of(out)

    first = predict(tmp_path / "before")
    capsys.readouterr()
    assert call("prune", runs, "--dry-run") == EXIT_DONE
    planned = capsys.readouterr().out.splitlines()
    assert {(fold, stage): names_in(fold, stage) for fold, stage in before} == before, "a dry run removes nothing"
    assert call("prune", runs) == EXIT_DONE
    printed = capsys.readouterr().out.splitlines()
    assert predict(tmp_path / "after") == first and len(first) > 4

    for fold in folds:
        early, main = before[fold, "early"], before[fold, "main"]
        assert names_in(fold, "early") == [early[FIRST], early[LAST]]
        assert names_in(fold, "main") == [main[FIRST], main[SECOND], main[LAST]]
        for stage in ("early", "main"):
            links = {name: (fold / stage / "checkpoints" / name).resolve().name for name in ("best", "last")}
            assert links == {"best": before[fold, stage][FIRST], "last": before[fold, stage][LAST]}
    freed = size - sum(path.stat().st_size for path in runs.rglob("step-*.pt"))
    assert printed[:-1] == planned[:-1] and len(printed) == 2 * 3 + 1
    assert sum(int(line.split()[-2]) for line in printed[:-1]) == freed
    assert printed[-1].startswith(f"removed 6 checkpoints, {freed} bytes (") and printed[-1].endswith("; 10 kept")
    assert planned[-1] == printed[-1].replace("removed", "would remove")
    capsys.readouterr()
    assert call("prune", runs / "plain", runs) == EXIT_DONE
    assert capsys.readouterr().out == "removed 0 checkpoints, 0 bytes (0.00 GiB); 10 kept\n"


def test_a_trained_fold_is_still_trained(runs: Path, trained: Trained) -> None:
    fold = runs / "plain/fold0"
    prune(plan_pruning(fold))
    before = content_of(fold)
    train(stages_of(), trained, runs)
    assert content_of(fold) == before


def test_a_stopped_training_resumes_to_the_same_bits(
    two_folds: Path, trained: Trained, tmp_path: Path, scores: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops in the second stage, whose first epochs are already worse than the best ones."""
    whole = two_folds / "plain/fold0"
    polls = stop_after(lambda: len(scores) == 1)
    monkeypatch.setattr(StopAgreement, "poll", lambda *_: polls())
    scores[:] = FALLING * 2
    with pytest.raises(Preempted):
        train(stages_of(), trained, tmp_path / "runs")
    fold = tmp_path / "runs/plain/fold0"
    shutil.copytree(fold, tmp_path / "copy/plain/fold0", symlinks=True)
    plan = plan_pruning(fold)
    prune(plan)
    assert len(plan.removed) >= 3 and len(names_in(fold, "early")) == 2
    monkeypatch.setattr(StopAgreement, "poll", lambda *_: Request.NONE)
    for runs in (tmp_path / "copy", tmp_path / "runs"):
        scores[:] = FALLING[-1:]
        train(stages_of(), trained, runs)
    assert run_differences(tmp_path / "copy/plain/fold0", fold) == []
    assert run_differences(whole, fold) == []
    assert names_in(fold, "main") == names_in(tmp_path / "copy/plain/fold0", "main")


def stop_after(is_so: Callable[[], bool]) -> Callable[[], Request]:
    """Return a poll that asks for a stop at the second call after a condition holds."""
    calls = 0

    def poll() -> Request:
        nonlocal calls
        calls += is_so()
        return Request.STOP if calls == 2 else Request.NONE

    return poll


@pytest.mark.slow
def test_the_repetition_that_predicts_keeps_its_best(trained: Trained, tmp_path: Path, scores: list[float]) -> None:
    """The second repetition gains, the third does not."""
    gaining, losing = [0.91, 0.95, 0.94, 0.1], [0.5, 0.6, 0.1, 0.05]
    scores[:] = [0.3, 0.2, 0.1, 0.05, *FALLING, *gaining, *losing]
    fold = train(stages_of(repeat="until_no_gain"), trained, tmp_path)
    before = {stage: names_in(fold, stage) for stage in ("main", "main-2", "main-3")}
    assert [len(names) for names in before.values()] == [4, 3, 4]
    prune(plan_pruning(fold))
    assert names_in(fold, "main") == [before["main"][FIRST], before["main"][LAST]]
    assert names_in(fold, "main-2") == before["main-2"]
    assert names_in(fold, "main-3") == [before["main-3"][SECOND], before["main-3"][LAST]]


def test_members_of_ensembles_keep_theirs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blend = tmp_path / "blend.yaml"
    members = [{"experiment": "plain", "stage": "early", "folds": [1]}, {"experiment": "nobody"}]
    blend.write_text(json.dumps({"name": "blend", "members": members}))
    assert call("prune", runs, "--config", blend) == EXIT_DONE
    assert "removed 5 checkpoints" in capsys.readouterr().out
    assert [len(names_in(runs / "plain" / fold, "early")) for fold in ("fold0", "fold1")] == [2, 3]


@pytest.mark.parametrize(("page", "count"), [("files", 3), ("cluster", 2)])
def test_the_commands_of_the_pages_run(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str, count: int
) -> None:
    text = (Path(__file__).parents[3] / f"docs/{page}.md").read_text()
    commands = re.findall(r"^    pneumo-dist (prune .*)$", text, re.MULTILINE)
    assert len(commands) == count
    monkeypatch.chdir(tmp_path)
    runs.rename("RUNS")
    Path("blend.yaml").write_text('{"name": "blend", "members": [{"experiment": "plain"}]}')
    for command in commands:
        before = len(list(Path("RUNS").rglob("*.pt")))
        assert call(*shlex.split(command.replace("/data/runs", "RUNS"))) == EXIT_DONE
        assert before - len(list(Path("RUNS").rglob("*.pt"))) in ([0] if "--dry-run" in command else [0, 6])
    assert len(list(Path("RUNS").rglob("*.pt"))) == 10


@pytest.fixture
def refusal(runs: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Prunes, expects that nothing is removed, and returns the line that is printed."""

    def refuse() -> str:
        before = sorted(runs.rglob("*.pt"))
        assert call("prune", runs) == EXIT_USAGE
        assert sorted(runs.rglob("*.pt")) == before
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return refuse


def test_a_fold_in_training_is_refused(runs: Path, refusal: Callable[[], str], tmp_path: Path) -> None:
    fold = runs / "plain/fold1"
    with hold_run_folder(fold, ALONE, {}):
        assert f"{fold}: process " in (line := refusal()) and line.endswith("is training here; wait for it, or stop it")
    # A lock of another node may not be seen, but its heartbeat is.
    beat = {"state": "running", "host": "alpha", "pid": 7, "job_id": "12", "time": time.time()}
    (fold / "heartbeat.json").write_text(json.dumps(beat))
    assert "process 7 of job 12 on alpha is training here" in refusal()
    with pytest.raises(InputError, match="process 7 of job 12"):
        prune(Pruning(fold, (), ()))
    (fold / "heartbeat.json").write_text(json.dumps({**beat, "time": time.time() - LOST_SECONDS}))
    assert len(plan_pruning(fold).removed) == 3


@pytest.mark.parametrize(("stage", "number"), [("early", FIRST), ("early", LAST), ("main", SECOND), ("main", LAST)])
def test_nothing_is_removed_if_a_file_that_stays_is_damaged(
    runs: Path, refusal: Callable[[], str], stage: str, number: int
) -> None:
    folder = runs / "plain/fold1"
    path = folder / stage / "checkpoints" / names_in(folder, stage)[number]
    flip_bit(path)
    assert f"{path}: damaged" in refusal()


def test_other_folders_are_refused(runs: Path, trained: Trained, tmp_path: Path) -> None:
    for folder in (trained.shards.folder, tmp_path / "nowhere", runs / "plain/fold0/main"):
        with pytest.raises(InputError, match="is no run folder; give the --runs of 'train'"):
            run_folders(folder)
    assert run_folders(runs) == run_folders(runs / "plain") == [runs / "plain/fold0", runs / "plain/fold1"]


def test_a_fold_that_has_changed_since_the_plan_is_left_alone(runs: Path) -> None:
    fold = runs / "plain/fold0"
    plan = plan_pruning(fold)
    shutil.copy(plan.kept[0].path, plan.kept[0].path.with_name("step-00009999-0123456789abcdef.pt"))
    before = sorted(fold.rglob("*.pt"))
    with pytest.raises(InputError, match="have changed meanwhile; run the command again"):
        prune(plan)
    assert sorted(fold.rglob("*.pt")) == before


def test_a_fold_without_a_validated_epoch_keeps_its_newest(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls = stop_after(lambda: True)
    monkeypatch.setattr(StopAgreement, "poll", lambda *_: polls())
    with pytest.raises(Preempted):
        train(stages_of(), trained, tmp_path)
    plan = plan_pruning(tmp_path / "plain/fold0")
    assert len(plan.kept) == 1 and plan.removed == ()
