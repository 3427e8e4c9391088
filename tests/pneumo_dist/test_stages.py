"""The stages of a fold: which are run again, where each starts, and which are done."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from pneumo_dist import stages, trainer
from pneumo_dist.checkpoint import list_checkpoints, load_checkpoint, weights_of
from pneumo_dist.config import Experiment
from pneumo_dist.distributed import Ranks
from pneumo_dist.learner import Learner
from pneumo_dist.stages import best_repetition, next_name, train_fold
from pneumo_dist.validation import Validation, validate
from shards.errors import InputError
from shards.table import Shards

ALONE = Ranks(0, 1, 0, torch.device("cpu"))
PLAIN: dict[str, Any] = {
    "amp": "float32",
    "model": {"arch": "fcn", "in_channels": 1, "fcn": {"widths": (4, 4, 8), "norm": True}},
    "data": {"loader": "synthetic"},
}
STAGE: dict[str, Any] = {
    "image_size": 96,
    "epochs": 2,
    "global_batch": 2,
    "micro_batch": 1,
    "eval_batch": 3,
    "optim": {"lr": 0.01},
    "top_k": 1,
}


def experiment_of(name: str, *given: dict[str, Any], **values: Any) -> Experiment:
    return Experiment.model_validate({"name": name, **PLAIN, **values, "stages": [{**STAGE, **each} for each in given]})


class Script:
    """Gives each validated epoch its score from a list, and notes the weights that each stage starts from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scores: list[float] = []
        self.starts: dict[str, trainer.Start] = {}
        start = stages._start

        def scripted(*arguments: Any, **options: Any) -> Validation:
            result = validate(*arguments, **options)
            assert result is not None
            best = dataclasses.replace(result.best, dice=self.scores.pop(0))
            return dataclasses.replace(result, best=best)

        def noted(*arguments: Any) -> trainer.Start:
            made = start(*arguments)
            self.starts[arguments[2].name] = made
            return made

        monkeypatch.setattr(trainer, "validate", scripted)
        monkeypatch.setattr(stages, "_start", noted)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch)


def train(experiment: Experiment, films: Shards, runs: Path, fold: int = 0) -> Path:
    folder = runs / experiment.name / f"fold{fold}"
    train_fold(experiment, fold, films, folder, ALONE, "resolved: true\n")
    return folder


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor] | None) -> bool:
    return other is not None and list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def best_weights(stage: Path) -> dict[str, torch.Tensor]:
    return weights_of(load_checkpoint(stage / "checkpoints" / "best"))


def test_repetitions_are_counted_from_2() -> None:
    assert next_name("part1", "part1") == "part1-2"
    assert next_name("part1", "part1-2") == "part1-3"
    assert next_name("part1-2", "part1-2") == "part1-2-2"
    assert next_name("a", "a-9") == "a-10"


REPEATED = ({"name": "part1", "repeat": "until_no_gain"}, {"name": "last", "epochs": 1})
# part1 gains in its second epoch, part1-2 in its first, and part1-3 only equals that.
SCORES = [0.5, 0.6, 0.7, 0.65, 0.7, 0.6, 0.1]


@pytest.mark.parametrize("decay", [None, 0.5])
def test_stage_is_repeated_until_it_gains_no_more(
    films: Shards, tmp_path: Path, script: Script, decay: float | None
) -> None:
    given = [{**stage, "optim": {"lr": 0.01, "ema_decay": decay}} for stage in REPEATED]
    experiment = experiment_of("x", *given)
    script.scores = list(SCORES)
    folder = train(experiment, films, tmp_path)
    assert script.scores == []
    assert {path.name for path in folder.iterdir()} == {"part1", "part1-2", "part1-3", "last", "config.yaml"}
    assert script.starts["part1"].weights is None
    best = {name: best_weights(folder / name) for name in ("part1", "part1-2", "part1-3")}
    assert not same(best["part1"], best["part1-2"]) and not same(best["part1-2"], best["part1-3"])
    assert same(best["part1"], script.starts["part1-2"].weights)
    assert same(best["part1-2"], script.starts["part1-3"].weights)
    assert same(best["part1-2"], script.starts["last"].weights), "the repetition that lost must not go on"
    steps = {path.parent.parent.name: load_checkpoint(path)["position"]["total"] for path in folder.glob("*/*/best")}
    last = {path.parent.parent.name: load_checkpoint(path)["position"]["total"] for path in folder.glob("*/*/last")}
    assert steps["part1"] == last["part1"] and steps["part1-2"] < last["part1-2"], "the best epochs are as scripted"
    assert best_repetition(experiment.stages[0], folder) == "part1-2"
    assert best_repetition(experiment.stages[1], folder) == "last"
    lineage = load_checkpoint(folder / "last/checkpoints/last")["lineage"]
    assert [ancestor["stage"] for ancestor in lineage] == ["part1", "part1-2", "last"]


def test_first_repetition_that_loses_is_the_last(films: Shards, tmp_path: Path, script: Script) -> None:
    experiment = experiment_of("x", *REPEATED)
    script.scores = [0.6, 0.5, 0.59, 0.59, 0.1]
    folder = train(experiment, films, tmp_path)
    assert script.scores == [] and not (folder / "part1-3").exists()
    assert same(best_weights(folder / "part1"), script.starts["last"].weights)
    assert best_repetition(experiment.stages[0], folder) == "part1"


def test_stage_without_repeat_runs_once_and_starts_from_the_best_before(
    films: Shards, tmp_path: Path, script: Script
) -> None:
    script.scores = [0.6, 0.5, 0.1, 0.2]
    folder = train(experiment_of("x", {"name": "a"}, {"name": "b"}), films, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "config.yaml"]
    start = script.starts["b"].weights
    assert same(best_weights(folder / "a"), start)
    assert not same(weights_of(load_checkpoint(folder / "a/checkpoints/last")), start)


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.rglob("step-*.pt")
    }


def test_finished_stages_are_skipped(
    films: Shards, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = experiment_of("x", *REPEATED)
    script.scores = list(SCORES)
    folder = train(experiment, films, tmp_path)
    before = files_of(folder)
    summaries = {path: path.read_text() for path in folder.rglob("summary.csv")}

    def refuse(*arguments: Any) -> None:
        raise AssertionError("a finished stage takes no step")

    monkeypatch.setattr(Learner, "step", refuse)
    train(experiment, films, tmp_path)
    assert len(before) >= 4 and files_of(folder) == before
    assert {path: path.read_text() for path in folder.rglob("summary.csv")} == summaries


@pytest.mark.parametrize("crash", [1, 8, 14, 20])
def test_run_that_crashed_in_any_repetition_ends_as_one_that_did_not(
    films: Shards, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch, crash: int
) -> None:
    given = [{**stage, "save_every": 1} for stage in REPEATED]
    script.scores = list(SCORES)
    straight = train(experiment_of("x", *given), films, tmp_path / "straight")
    step, taken = Learner.step, 0

    def crashing(self: Learner, *arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == crash:
            raise RuntimeError("the machine is gone")
        return step(self, *arguments)

    monkeypatch.setattr(Learner, "step", crashing)
    script.scores = list(SCORES)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        train(experiment_of("x", *given), films, tmp_path / "crashed")
    crashed = train(experiment_of("x", *given), films, tmp_path / "crashed")
    assert script.scores == [], "an epoch was validated twice, or never"
    for name in ("part1", "part1-2", "part1-3", "last"):
        one, other = (load_checkpoint(folder / name / "checkpoints/last") for folder in (straight, crashed))
        assert same(one["model"], other["model"]), name
        assert one["history"] == other["history"] and one["lineage"] == other["lineage"]


# Another experiment's stage to start from


def second_of(stage: str = "fine", **values: Any) -> Experiment:
    return experiment_of("second", {"name": "main"}, init={"experiment": "first", "stage": stage}, **values)


@pytest.fixture
def first(films: Shards, tmp_path: Path, script: Script) -> Path:
    """The runs folder, with the experiment `first` trained in fold 0."""
    script.scores = [0.2, 0.3, 0.9, 0.4]
    train(experiment_of("first", {"name": "coarse"}, {"name": "fine"}), films, tmp_path)
    return tmp_path


def test_experiment_starts_from_anothers_best_of_the_same_fold(films: Shards, first: Path, script: Script) -> None:
    script.scores = [0.1, 0.2]
    folder = train(second_of(), films, first)
    assert same(best_weights(first / "first/fold0/fine"), script.starts["main"].weights)
    lineage = load_checkpoint(folder / "main/checkpoints/last")["lineage"]
    named = [(ancestor["experiment"], ancestor["stage"], ancestor["fold"]) for ancestor in lineage]
    assert named == [("first", "coarse", 0), ("first", "fine", 0), ("second", "main", 0)]


@pytest.mark.parametrize(
    ("stage", "fold", "missing"), [("none", 0, "first/fold0/none"), ("fine", 1, "first/fold1/fine")]
)
def test_missing_start_is_an_input_error_that_names_the_folder(
    films: Shards, first: Path, stage: str, fold: int, missing: str
) -> None:
    with pytest.raises(InputError, match="no checkpoints; train that fold first") as caught:
        train(second_of(stage), films, first, fold)
    assert missing in str(caught.value)
    assert not list_checkpoints(first / f"second/fold{fold}/main/checkpoints")


def test_start_that_changed_is_noticed_by_a_resume(films: Shards, first: Path, script: Script) -> None:
    script.scores = [0.1, 0.2]
    train(second_of(), films, first)
    with pytest.raises(InputError, match="was trained on other films"):
        train(experiment_of("second", {"name": "main"}), films, first)


def test_config_is_written_only_once_the_first_stage_accepts_it(films: Shards, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        train(second_of(), films, tmp_path)
    assert not (tmp_path / "second/fold0/config.yaml").exists()
