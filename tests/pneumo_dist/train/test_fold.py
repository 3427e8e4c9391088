"""The stages of a fold: repetitions, starting points, and stages that are finished."""

import dataclasses
import errno
import math
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import TINY_MODEL, tiny_experiment
from damage import empty, flip_bit, truncate
from tensors import same
from tools.equality import run_differences

from pneumo_dist.config.ensemble import MemberConfig
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.data.plan import EpochPlan, split_fold
from pneumo_dist.predict.ensemble import TrainedFold
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.stop import Preempted, Request, StopAgreement
from pneumo_dist.runs import checkpoint, checkpoint_folder
from pneumo_dist.runs.checkpoint import CheckpointFile, load_checkpoint, weights_of
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.runs.lineage import check_unseen
from pneumo_dist.runs.logs import METRICS, read_epochs
from pneumo_dist.runs.repetitions import best_repetition, best_score
from pneumo_dist.train import fold as stages
from pneumo_dist.train import stage as trainer
from pneumo_dist.train.fold import check_resume, train_fold
from pneumo_dist.train.stage import StageRun
from pneumo_dist.train.start import Start, Trained, find_start
from pneumo_dist.train.step import Learner
from pneumo_dist.train.validation import Validation, validate
from shards.dataset.table import Shards
from shards.errors import InputError
from shards.files import NamedLater, atomic_named_later, sha256_file

ALONE = Ranks.alone()


class Script:
    """Sets the score of each validated epoch from a list, and records the initial weights of each stage."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scores: list[float] = []
        self.starts: dict[str, Start] = {}
        start = find_start

        def scripted(*arguments: Any, **options: Any) -> Validation:
            result = validate(*arguments, **options)
            best = dataclasses.replace(result.best, dice=self.scores.pop(0))
            return dataclasses.replace(result, best=best)

        def noted(*arguments: Any) -> Start:
            made = start(*arguments)
            self.starts[arguments[2].name] = made
            return made

        monkeypatch.setattr(trainer, "validate", scripted)
        monkeypatch.setattr(stages, "find_start", noted)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch)


def train(experiment: Experiment, films: Shards, runs: Path, fold: int = 0) -> Path:
    folder = runs / experiment.name / f"fold{fold}"
    train_fold(FoldRun(experiment, fold, films, folder, ALONE), lambda _: "resolved: true\n")
    return folder


def files_in(checkpoints: Path) -> list[CheckpointFile]:
    return CheckpointFolder(checkpoints).files()


def logged(folder: Path, stage: str) -> list[int]:
    """The validated epochs in a stage's log."""
    return [record["epoch"] for record in read_epochs(folder / stage / METRICS)]


def test_finished_stage_with_more_epochs_continues_as_if_it_had_them_from_the_start(
    films: Shards, tmp_path: Path
) -> None:
    short, long = (tiny_experiment({"name": "a", "epochs": epochs}) for epochs in (1, 3))
    straight = train(long, films, tmp_path / "straight")
    train(short, films, tmp_path / "extended")
    extended = train(long, films, tmp_path / "extended")
    assert logged(extended, "a") == [0, 1, 2]
    assert list(run_differences(straight, extended)) == []


@pytest.mark.parametrize("step", [0, 1])
def test_stage_with_fewer_epochs_than_done_ends_at_once(
    films: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The longer run stops between two epochs, or within its third."""
    polls = iter([Request.NONE] * 10**6)
    monkeypatch.setattr(StopAgreement, "poll", lambda *_: next(polls))
    experiment = tiny_experiment({"name": "a", "epochs": 5}, {"name": "b", "epochs": 1})
    per_epoch = EpochPlan(split_fold(films, 0, False), experiment.stages[0], 0, 1).steps(0)
    rounds = math.ceil(len(split_fold(films, 0, False).validation) / 3)
    polls = iter([Request.NONE] * (2 * (per_epoch + rounds) + step - 1) + [Request.STOP])
    with pytest.raises(Preempted):
        train(experiment, films, tmp_path)
    before = logged(tmp_path / "x/fold0", "a")
    polls = iter([Request.NONE] * 10**6)
    folder = train(tiny_experiment({"name": "a", "epochs": 1}, {"name": "b", "epochs": 1}), films, tmp_path)
    assert logged(folder, "a") == before and len(before) in (1, 2)
    assert logged(folder, "b") == [0]


@pytest.mark.parametrize("follower", [{"name": "b", "epochs": 1}, None])
def test_stage_that_another_stage_started_from_gets_no_more_epochs(
    films: Shards, tmp_path: Path, script: Script, follower: dict[str, Any] | None
) -> None:
    """The other stage is the next one, or a repetition."""
    own = {"name": "a", "epochs": 1, **({} if follower else {"repeat": "until_no_gain"})}
    others = [follower] if follower else []
    script.scores = [0.5, 0.4, 0.3]
    train(tiny_experiment(own, *others), films, tmp_path)
    started = "b" if follower else "a-2"
    before = (tmp_path / "x/fold0/config.yaml").read_text()
    with pytest.raises(
        InputError, match=rf"after 1 epochs and stage {started} has started from it; set its epochs \(1\)"
    ):
        train(tiny_experiment({**own, "epochs": 2}, *others), films, tmp_path)
    assert (tmp_path / "x/fold0/config.yaml").read_text() == before


def test_schedule_that_depends_on_the_epochs_fixes_them(films: Shards, tmp_path: Path) -> None:
    stage = {"name": "a", "epochs": 1, "schedule": {"name": "cosine"}}
    train(tiny_experiment(stage), films, tmp_path)
    with pytest.raises(InputError, match="trained with another epochs"):
        train(tiny_experiment({**stage, "epochs": 2}), films, tmp_path)


def test_more_patience_continues_a_stage_that_ran_out_of_it(films: Shards, tmp_path: Path, script: Script) -> None:
    script.scores = [0.5, 0.4, 0.3, 0.2]
    patient = [tiny_experiment({"name": "a", "epochs": 9, "early_stop": patience}) for patience in (1, 3)]
    assert logged(train(patient[0], films, tmp_path), "a") == [0, 1]
    assert logged(train(patient[1], films, tmp_path), "a") == [0, 1, 2, 3]
    assert script.scores == []


def test_written_config_shows_finished_stages_as_they_ran(films: Shards, tmp_path: Path) -> None:
    first = tiny_experiment({"name": "a", "epochs": 1, "top_k": 1})
    folder = tmp_path / "x/fold0"
    told: list[Experiment] = []

    def resolved(experiment: Experiment) -> str:
        told.append(experiment)
        return experiment.model_dump_json()

    for experiment in (
        first,
        tiny_experiment({"name": "a", "epochs": 1, "top_k": 5}),
        tiny_experiment({"name": "a", "epochs": 1, "top_k": 7}, {"name": "b", "epochs": 1, "top_k": 7}),
    ):
        train_fold(FoldRun(experiment, 0, films, folder, ALONE), resolved)
    assert [[stage.top_k for stage in experiment.stages] for experiment in told] == [[1], [1, 7]]
    assert (folder / "config.yaml").read_text() == told[-1].model_dump_json()


def best_weights(stage: Path) -> dict[str, torch.Tensor]:
    return weights_of(load_checkpoint(stage / "checkpoints" / "best"))


REPEATED = ({"name": "part1", "repeat": "until_no_gain"}, {"name": "last", "epochs": 1})
# part1 improves in its second epoch, part1-2 in its first, and part1-3 only equals that.
SCORES = [0.5, 0.6, 0.7, 0.65, 0.7, 0.6, 0.1]


@pytest.mark.parametrize("decay", [None, 0.5])
def test_stage_repeats_until_it_no_longer_improves(
    films: Shards, tmp_path: Path, script: Script, decay: float | None
) -> None:
    given = [{**stage, "optim": {"lr": 0.01, "ema_decay": decay}} for stage in REPEATED]
    experiment = tiny_experiment(*given)
    script.scores = list(SCORES)
    folder = train(experiment, films, tmp_path)
    assert script.scores == []
    assert {path.name for path in folder.iterdir()} == {"part1", "part1-2", "part1-3", "last", "config.yaml"}
    assert script.starts["part1"].map_weights() is None
    best = {name: best_weights(folder / name) for name in ("part1", "part1-2", "part1-3")}
    assert not same(best["part1"], best["part1-2"]) and not same(best["part1-2"], best["part1-3"])
    assert same(best["part1"], script.starts["part1-2"].map_weights())
    assert same(best["part1-2"], script.starts["part1-3"].map_weights())
    assert same(best["part1-2"], script.starts["last"].map_weights()), "the repetition that lost must not go on"
    steps = {path.parent.parent.name: load_checkpoint(path)["position"]["total"] for path in folder.glob("*/*/best")}
    last = {path.parent.parent.name: load_checkpoint(path)["position"]["total"] for path in folder.glob("*/*/last")}
    assert steps["part1"] == last["part1"] and steps["part1-2"] < last["part1-2"], "the best epochs are as scripted"
    assert best_repetition(experiment.stages[0], folder).path == folder / "part1-2/checkpoints"
    assert best_repetition(experiment.stages[1], folder).path == folder / "last/checkpoints"
    lineage = load_checkpoint(folder / "last/checkpoints/last")["lineage"]
    assert [ancestor["stage"] for ancestor in lineage] == ["part1", "part1-2", "last"]


def test_first_repetition_without_a_gain_is_the_last(films: Shards, tmp_path: Path, script: Script) -> None:
    experiment = tiny_experiment(*REPEATED)
    script.scores = [0.6, 0.5, 0.59, 0.59, 0.1]
    folder = train(experiment, films, tmp_path)
    assert script.scores == [] and not (folder / "part1-3").exists()
    assert same(best_weights(folder / "part1"), script.starts["last"].map_weights())
    assert best_repetition(experiment.stages[0], folder).path == folder / "part1/checkpoints"


def test_stage_that_gains_nothing_is_not_repeated(films: Shards, tmp_path: Path, script: Script) -> None:
    """part1 scores at most what the stage before it scored, so part1-2 is not trained."""
    before, (repeated, last) = {"name": "part0", "epochs": 1}, REPEATED
    script.scores = [0.6, 0.5, 0.6, 0.1]
    folder = train(tiny_experiment(before, repeated, last), films, tmp_path)
    assert script.scores == []
    assert {path.name for path in folder.iterdir()} == {"part0", "part1", "last", "config.yaml"}
    assert same(best_weights(folder / "part1"), script.starts["last"].map_weights())


def test_stage_that_an_earlier_version_repeated_without_gain_resumes_as_it_began(
    films: Shards, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions compared part1-2 with part1 alone, although part1 had gained nothing over part0."""
    before, (repeated, last) = {"name": "part0", "epochs": 1}, REPEATED
    experiment = tiny_experiment(before, repeated, last)
    script.scores = [0.6, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5, 0.1]
    with monkeypatch.context() as context:
        context.setattr(
            Trained,
            "score",
            property(lambda each: 0.0 if "part0" in str(each.checkpoints) else best_score(each.history)),
        )
        folder = train(experiment, films, tmp_path)
    assert script.scores == [] and (folder / "part1-3").exists()
    assert same(best_weights(folder / "part1-2"), script.starts["last"].map_weights())
    files = files_of(folder)
    check_resume(FoldRun(experiment, 0, films, folder, ALONE))
    train(experiment, films, tmp_path)
    assert files_of(folder) == files


@pytest.mark.parametrize(
    ("scores", "starts"),
    [
        ([0.5, 0.6, 0.4, 0.7], {"b": "a", "c": "b", "d": "b"}),
        ([0.5, 0.4, 0.3, 0.7], {"b": "a", "c": "a", "d": "a"}),
        ([0.5, 0.5, 0.6, 0.7], {"b": "a", "c": "a", "d": "c"}),
        ([0.5, 0.4, 0.45, 0.1], {"b": "a", "c": "a", "d": "a"}),
    ],
    ids=["c loses", "b and c lose", "b equals a", "c gains over b alone"],
)
def test_stage_without_gain_is_not_carried_on(
    films: Shards, tmp_path: Path, script: Script, scores: list[float], starts: dict[str, str]
) -> None:
    """The lineage leaves out the stages that are not carried on, and a resumed run starts nothing again."""
    experiment = tiny_experiment(
        *({"name": name, "epochs": 1, "init_from": "best_so_far"} for name in ("a", "b", "c", "d"))
    )
    script.scores = list(scores)
    folder = train(experiment, films, tmp_path)
    assert script.starts["a"].map_weights() is None
    for stage, start in starts.items():
        assert same(best_weights(folder / start), script.starts[stage].map_weights()), stage
    ancestors = [stage["stage"] for stage in load_checkpoint(folder / "d/checkpoints/last")["lineage"]]
    line = ["d"]
    while line[0] in starts:
        line.insert(0, starts[line[0]])
    assert ancestors == line
    predicting = TrainedFold(experiment, experiment.stage("d"), 0, folder).files(MemberConfig(experiment="x"))
    assert [file.path.parent.parent.name for file in predicting] == ["d"], "a member's stage predicts, gain or not"
    files = files_of(folder)
    check_resume(FoldRun(experiment, 0, films, folder, ALONE))
    train(experiment, films, tmp_path)
    assert files_of(folder) == files and script.scores == []


@pytest.mark.parametrize(
    ("init_from", "scores", "epochs"),
    [
        ("previous", [0.3, 0.4, 0.4, 0.4], 4),
        ("best_so_far", [0.3, 0.4], 2),
        ("best_so_far", [0.5, 0.5], 2),
        ("best_so_far", [0.4, 0.6, 0.6, 0.5], 4),
        ("best_so_far", [0.6, 0.55, 0.5], 3),
    ],
)
def test_patience_counts_from_the_best_so_far(
    films: Shards, tmp_path: Path, script: Script, init_from: str, scores: list[float], epochs: int
) -> None:
    """As in the first place's `epoch - best > N`, where the best may be that of an earlier part."""
    last = {"name": "b", "epochs": 9, "early_stop": 2, "init_from": init_from}
    script.scores = [0.5, *scores]
    experiment = tiny_experiment({"name": "a", "epochs": 1}, last)
    folder = train(experiment, films, tmp_path)
    assert logged(folder, "b") == list(range(epochs)) and script.scores == []
    files = files_of(folder)
    train(experiment, films, tmp_path)
    assert files_of(folder) == files, "a finished stage is not trained on"


def test_best_so_far_and_previous_can_be_mixed(films: Shards, tmp_path: Path, script: Script) -> None:
    script.scores = [0.5, 0.4, 0.3, 0.45]
    ways = {"a": "previous", "b": "previous", "c": "previous", "d": "best_so_far"}
    given = [{"name": name, "epochs": 1, "init_from": way} for name, way in ways.items()]
    folder = train(tiny_experiment(*given), films, tmp_path)
    for stage, start in {"b": "a", "c": "b", "d": "a"}.items():
        assert same(best_weights(folder / start), script.starts[stage].map_weights()), stage


def test_best_so_far_includes_the_checkpoint_of_init(films: Shards, tmp_path: Path, script: Script) -> None:
    script.scores = [0.5, 0.4, 0.3]
    first = train(tiny_experiment({"name": "main", "epochs": 1}, name="first"), films, tmp_path)
    given = [{"name": name, "epochs": 1, "init_from": "best_so_far"} for name in ("a", "b")]
    train(tiny_experiment(*given, name="second", init={"experiment": "first", "stage": "main"}), films, tmp_path)
    for stage in ("a", "b"):
        assert same(best_weights(first / "main"), script.starts[stage].map_weights())


def test_best_so_far_of_a_repeated_stage_is_its_best_repetition(films: Shards, tmp_path: Path, script: Script) -> None:
    """b-2 gains over b and b-3 does not; c gains nothing, so d starts from b-2 too."""
    repeated = {"name": "b", "repeat": "until_no_gain"}
    given = [
        {"epochs": 1, "init_from": "best_so_far", **stage}
        for stage in ({"name": "a"}, repeated, {"name": "c"}, {"name": "d"})
    ]
    script.scores = [0.3, 0.5, 0.6, 0.6, 0.2, 0.1]
    folder = train(tiny_experiment(*given), films, tmp_path)
    assert script.scores == []
    for stage, start in {"b": "a", "b-2": "b", "b-3": "b-2", "c": "b-2", "d": "b-2"}.items():
        assert same(best_weights(folder / start), script.starts[stage].map_weights()), stage


def test_stage_without_repeat_runs_once_from_the_best_checkpoint_before(
    films: Shards, tmp_path: Path, script: Script
) -> None:
    script.scores = [0.6, 0.5, 0.1, 0.2]
    folder = train(tiny_experiment({"name": "a"}, {"name": "b"}), films, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "config.yaml"]
    start = script.starts["b"].map_weights()
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
    experiment = tiny_experiment(*REPEATED)
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


@pytest.mark.parametrize("crash", [8, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 14, 20))])
def test_run_that_crashed_in_a_repetition_ends_like_one_that_did_not(
    films: Shards, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch, crash: int
) -> None:
    given = [{**stage, "save_every": 1} for stage in REPEATED]
    script.scores = list(SCORES)
    straight = train(tiny_experiment(*given), films, tmp_path / "straight")
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
        train(tiny_experiment(*given), films, tmp_path / "crashed")
    crashed = train(tiny_experiment(*given), films, tmp_path / "crashed")
    assert script.scores == [], "an epoch was validated twice, or never"
    for name in ("part1", "part1-2", "part1-3", "last"):
        one, other = (load_checkpoint(folder / name / "checkpoints/last") for folder in (straight, crashed))
        assert same(one["model"], other["model"]), name
        assert one["history"] == other["history"] and one["lineage"] == other["lineage"]


# Start from a stage of another experiment


def second_of(stage: str = "fine", **values: Any) -> Experiment:
    return tiny_experiment({"name": "main"}, name="second", init={"experiment": "first", "stage": stage}, **values)


@pytest.fixture
def first(films: Shards, tmp_path: Path, script: Script) -> Path:
    """The runs folder, with the experiment `first` trained in fold 0."""
    script.scores = [0.2, 0.3, 0.9, 0.4]
    train(tiny_experiment({"name": "coarse"}, {"name": "fine"}, name="first"), films, tmp_path)
    return tmp_path


def test_experiment_starts_from_the_best_of_another_in_the_same_fold(
    films: Shards, first: Path, script: Script
) -> None:
    script.scores = [0.1, 0.2]
    folder = train(second_of(), films, first)
    assert same(best_weights(first / "first/fold0/fine"), script.starts["main"].map_weights())
    lineage = load_checkpoint(folder / "main/checkpoints/last")["lineage"]
    named = [(ancestor["experiment"], ancestor["stage"], ancestor["fold"]) for ancestor in lineage]
    assert named == [("first", "coarse", 0), ("first", "fine", 0), ("second", "main", 0)]


@pytest.mark.parametrize(
    ("stage", "fold", "missing"), [("none", 0, "first/fold0/none"), ("fine", 1, "first/fold1/fine")]
)
def test_missing_start_is_an_input_error_with_the_folder(
    films: Shards, first: Path, stage: str, fold: int, missing: str
) -> None:
    with pytest.raises(InputError, match="no checkpoints; train that fold first") as caught:
        train(second_of(stage), films, first, fold)
    assert missing in str(caught.value)
    assert not files_in(first / f"second/fold{fold}/main/checkpoints")


def test_resume_detects_a_changed_start(films: Shards, first: Path, script: Script) -> None:
    script.scores = [0.1, 0.2]
    train(second_of(), films, first)
    with pytest.raises(InputError, match="was trained with another init"):
        train(tiny_experiment({"name": "main"}, name="second"), films, first)


def from_file(path: Path, trained_on: str = "unknown", **values: Any) -> Experiment:
    init = {"file": str(path), "sha256": sha256_file(path), "trained_on": trained_on}
    return tiny_experiment(
        {"name": "main", "epochs": 1}, {"name": "more", "epochs": 1}, name="third", init=init, **values
    )


@pytest.mark.parametrize(
    ("trained_on", "ancestors", "is_unseen"),
    [("unknown", 3, False), ("this_fold", 3, True), ("other_films", 2, True)],
)
def test_experiment_starts_from_a_file(
    films: Shards, first: Path, monkeypatch: pytest.MonkeyPatch, trained_on: str, ancestors: int, is_unseen: bool
) -> None:
    """The first stage starts from the file alone, and the config says whether its network may judge the fold."""
    path = first / "foreign.pt"
    weights = best_weights(first / "first/fold0/fine")
    torch.save({f"module.{name}": value for name, value in weights.items()}, path)
    built: list[dict[str, torch.Tensor]] = []

    def noted(*arguments: Any) -> Learner:
        built.append({name: value.clone() for name, value in arguments[4].state_dict().items()})
        return Learner(*arguments)

    monkeypatch.setattr(trainer, "Learner", noted)
    monkeypatch.setattr(trainer, "validate", validate)
    experiment = from_file(path, trained_on)
    folder = train(experiment, films, first)
    assert same(built[0], weights) and len(built) == 2
    lineage = load_checkpoint(folder / "more/checkpoints/last")["lineage"]
    assert len(lineage) == ancestors and (lineage[0]["experiment"] == "init.file") == (ancestors == 3)
    if is_unseen:
        check_unseen(lineage, "a network", films, 0)
    else:
        with pytest.raises(InputError, match=r"a network: started from the weights of an init\.file with unknown"):
            check_unseen(lineage, "a network", films, 0)
    files = files_of(folder)
    path.unlink()
    train(experiment, films, first)
    assert files_of(folder) == files, "a trained fold does not need the file any more"


def test_another_file_cannot_resume(films: Shards, first: Path, script: Script) -> None:
    script.scores = [0.1, 0.2]
    path = first / "foreign.pt"
    torch.save(best_weights(first / "first/fold0/fine"), path)
    train(from_file(path), films, first)
    torch.save(best_weights(first / "first/fold0/coarse"), path)
    with pytest.raises(InputError, match=r"was trained with another init\.sha256"):
        train(from_file(path), films, first)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def stages_of(*epochs: int, **first: Any) -> list[dict[str, Any]]:
    named = [{"name": name, "epochs": count} for name, count in zip("ab", epochs, strict=True)]
    return [{**named[0], **first}, *named[1:]]


@pytest.mark.parametrize(
    ("fold", "experiment"),
    [
        (0, tiny_experiment(*stages_of(1, 1), seed=1)),
        (0, tiny_experiment(*stages_of(1, 1, optim={"lr": 0.5}))),
        (0, tiny_experiment(*stages_of(2, 1))),
        (0, tiny_experiment(*stages_of(1, 1), init={"experiment": "nobody", "stage": "main"})),
        (1, tiny_experiment(*stages_of(1, 1))),
    ],
    ids=["seed", "lr", "epochs", "init", "fold"],
)
def test_preflight_refuses_a_resume_with_the_same_message(
    films: Shards, tmp_path: Path, fold: int, experiment: Experiment
) -> None:
    folder = train(tiny_experiment(*stages_of(1, 1)), films, tmp_path)
    before = everything(tmp_path)
    run = FoldRun(experiment, fold, films, folder, ALONE)
    told = refusal(lambda: check_resume(run))
    assert everything(tmp_path) == before
    assert told == refusal(lambda: train_fold(run, lambda _: "resolved: true\n"))


def test_preflight_accepts_a_valid_resume_and_writes_nothing(films: Shards, tmp_path: Path) -> None:
    folder = train(tiny_experiment(*stages_of(1, 1)), films, tmp_path)
    before = everything(tmp_path)
    for epochs in (1, 2):
        check_resume(FoldRun(tiny_experiment(*stages_of(1, epochs)), 0, films, folder, ALONE))
    check_resume(FoldRun(tiny_experiment(*stages_of(1, 1), name="y"), 0, films, tmp_path / "y/fold0", ALONE))
    assert everything(tmp_path) == before and not (tmp_path / "y").exists()


def test_preflight_refuses_a_start_from_another_network(films: Shards, first: Path) -> None:
    experiment = second_of(model={**TINY_MODEL, "fcn": {"widths": (4, 4, 16), "norm": True}})
    told = refusal(lambda: check_resume(FoldRun(experiment, 0, films, first / "second/fold0", ALONE)))
    assert told.startswith("stage main: the checkpoint that it starts from has another network")
    assert told == refusal(lambda: train(experiment, films, first))


def test_config_is_written_only_after_the_first_stage_accepts_it(films: Shards, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        train(second_of(), films, tmp_path)
    assert not (tmp_path / "second/fold0/config.yaml").exists()


# Files that are read, and faults


class Reads:
    """Records which files are verified, read as headers, and loaded with tensors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.verified: list[str] = []
        self.headers: list[str] = []
        self.loaded: list[str] = []
        digest, load = checkpoint._digest, checkpoint._load

        def noting_digest(stream: BufferedReader) -> str:
            self.verified.append(self._name(Path(stream.name)))
            return digest(stream)

        def noting_load(
            stream: BufferedReader, path: Path, with_tensors: bool = True, mapped: bool = False
        ) -> dict[str, Any]:
            (self.loaded if with_tensors else self.headers).append(self._name(path))
            return load(stream, path, with_tensors, mapped)

        monkeypatch.setattr(checkpoint, "_digest", noting_digest)
        monkeypatch.setattr(checkpoint, "_load", noting_load)

    @staticmethod
    def _name(path: Path) -> str:
        return f"{path.parent.parent.name}/{path.name[:13]}"

    def clear(self) -> None:
        for names in (self.verified, self.headers, self.loaded):
            names.clear()


TWO = ({"name": "a", "save_every": 1}, {"name": "b", "save_every": 1})


def test_stage_keeps_nothing_of_the_checkpoint_that_it_started_from(
    films: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of its own nor of that of the stage before, which are mapped from their files."""
    mapped: list[tuple[bool, bool]] = []
    real, train_epochs = checkpoint._load, StageRun._train_epochs

    def is_mapped() -> bool:
        return str(tmp_path) in Path("/proc/self/maps").read_text()

    def noting_load(*arguments: Any, **named: Any) -> dict[str, Any]:
        state = real(*arguments, **named)
        mapped.append((bool(named.get("mapped")), is_mapped()))
        return state

    def noting_train(stage: StageRun) -> None:
        assert not is_mapped()
        if stage.stage.name == "b" and stage.position.total == 0:
            stage._save()
            stage.saver.finish()
            raise RuntimeError("the machine is gone")
        train_epochs(stage)

    monkeypatch.setattr(checkpoint, "_load", noting_load)
    monkeypatch.setattr(StageRun, "_train_epochs", noting_train)
    with pytest.raises(RuntimeError, match="is gone"):
        train(tiny_experiment(*TWO), films, tmp_path)
    assert mapped == [(True, True)]
    with pytest.raises(RuntimeError, match="is gone"):
        train(tiny_experiment(*TWO), films, tmp_path)
    assert mapped[-1] == (True, True) and len(mapped) > 2


def test_file_is_verified_and_loaded_once_and_weights_of_a_finished_stage_never(
    films: Shards, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.scores = [0.6, 0.5, 0.1, 0.2]
    reads = Reads(monkeypatch)
    folder = train(tiny_experiment(*TWO), films, tmp_path)
    best = f"a/{(folder / 'a/checkpoints/best').resolve().name[:13]}"
    assert reads.verified == reads.loaded == [best], "only the second stage's start is read"
    newest = [f"{name}/{(folder / name / 'checkpoints/last').resolve().name[:13]}" for name in ("a", "b")]
    assert newest[0] != best
    reads.clear()
    train(tiny_experiment(*TWO), films, tmp_path)
    assert reads.verified == reads.headers == newest and reads.loaded == []


def test_resume_reads_no_weights_of_the_start_of_another_experiment(
    films: Shards, first: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.scores = [0.1, 0.2]
    train(second_of(), films, first)
    reads = Reads(monkeypatch)
    train(second_of(), films, first)
    newest = (first / "first/fold0/fine/checkpoints/last").resolve()
    own = (first / "second/fold0/main/checkpoints/last").resolve()
    assert reads.verified == reads.headers == [f"fine/{newest.name[:13]}", f"main/{own.name[:13]}"]
    assert reads.loaded == []


def test_damaged_best_checkpoint_of_the_previous_stage_is_an_input_error(
    films: Shards, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.scores = [0.6, 0.5]
    folder = train(tiny_experiment(TWO[0]), films, tmp_path)
    (folder / "a/checkpoints/best").resolve().write_bytes(b"")
    with pytest.raises(InputError, match="damaged"):
        train(tiny_experiment(*TWO), films, tmp_path)


@pytest.fixture(scope="module")
def straight(films: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fold of a run without faults."""
    return train(tiny_experiment(*TWO), films, tmp_path_factory.mktemp("straight"))


@pytest.mark.parametrize("damage", [truncate, flip_bit, empty])
def test_run_with_a_damaged_newest_checkpoint_resumes_from_the_previous_one(
    films: Shards, straight: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = shutil.copytree(straight, tmp_path / "x/fold0", symlinks=True)
    newest, before = files_in(folder / "b/checkpoints")[:2]
    damage(newest.path)
    with pytest.warns(UserWarning, match="is damaged") as caught:
        train(tiny_experiment(*TWO), films, tmp_path)
    (message,) = [str(each.message) for each in caught if "is damaged" in str(each.message)]
    assert newest.path.name in message and before.path.name in message
    assert run_differences(straight, folder) == []


def test_good_checkpoint_behind_damaged_ones_stays_until_there_is_a_newer_one(
    films: Shards, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(straight, tmp_path / "x/fold0", symlinks=True)
    good = files_in(folder / "b/checkpoints")[-1]
    CheckpointFolder(good.path.parent).save(good.step + 90, {"model": {}})
    CheckpointFolder(good.path.parent).save(good.step + 91, {"model": {}})
    for file in files_in(folder / "b/checkpoints"):
        if file.path != good.path:
            flip_bit(file.path)

    def refuse(*arguments: Any) -> None:
        raise RuntimeError("the machine is gone")

    with monkeypatch.context() as broken, pytest.warns(UserWarning), pytest.raises(RuntimeError, match="is gone"):
        broken.setattr(Learner, "step", refuse)
        train(tiny_experiment(*TWO), films, tmp_path)
    assert files_in(folder / "b/checkpoints") == [good]
    train(tiny_experiment(*TWO), films, tmp_path)
    assert run_differences(straight, folder) == []


class FullDisk:
    """Fails to write the checkpoints of some steps of stage b."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: set[int] = set()

        def refusing(folder: Path, prefix: str) -> AbstractContextManager[NamedLater]:
            if folder.parent.name == "b" and int(prefix.split("-")[1]) in self.steps:
                raise OSError(errno.ENOSPC, "No space left on device", str(folder / prefix))
            return atomic_named_later(folder, prefix)

        monkeypatch.setattr(checkpoint_folder, "atomic_named_later", refusing)


def test_run_continues_while_the_disk_is_full(
    films: Shards, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = files_in(straight / "b/checkpoints")[0].step
    disk = FullDisk(monkeypatch)
    disk.steps = {1, 2, last - 1}
    with pytest.warns(UserWarning, match="not saved") as caught:
        folder = train(tiny_experiment(*TWO), films, tmp_path)
    assert sum("is not saved (No space left" in str(each.message) for each in caught) == len(disk.steps)
    assert run_differences(straight, folder) == []


def test_stage_whose_last_save_failed_is_an_error_and_resumes_when_there_is_space(
    films: Shards, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = files_in(straight / "b/checkpoints")[0].step
    disk = FullDisk(monkeypatch)
    disk.steps = {last}
    with pytest.warns(UserWarning, match="not saved"), pytest.raises(OSError, match="No space left"):
        train(tiny_experiment(*TWO), films, tmp_path)
    folder = tmp_path / "x/fold0"
    assert files_in(folder / "b/checkpoints")[0].step == last - 1
    disk.steps = set()
    train(tiny_experiment(*TWO), films, tmp_path)
    assert run_differences(straight, folder) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.slow
def test_disk_that_is_full_for_a_while_stops_no_run(
    films: Shards, straight: Path, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {"model": {**TINY_MODEL, "fcn": {"widths": (64, 64, 96), "norm": True}}}
    experiment = tiny_experiment(*TWO, **wide)
    undisturbed = train(experiment, films, tmp_path)
    size = files_in(undisturbed / "a/checkpoints")[0].path.stat().st_size
    before = files_in(undisturbed / "a/checkpoints")[0].step
    step, taken = Learner.step, 0

    def filling(self: Learner, *arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        for thread in threading.enumerate():
            if thread.name == "checkpoint" and before < taken <= before + 3:
                thread.join()  # the disk changes between saves
        if taken == before + 1:
            room = shutil.disk_usage(small_disk).free
            (small_disk / "ballast").write_bytes(bytes(room - size // 2))  # room for logs
        if taken == before + 3:
            (small_disk / "ballast").unlink()
        return step(self, *arguments)

    monkeypatch.setattr(Learner, "step", filling)
    with pytest.warns(UserWarning, match="not saved") as caught:
        folder = train(experiment, films, small_disk)
    assert sum("is not saved (No space left" in str(each.message) for each in caught) == 2, "b's first two steps"
    assert run_differences(undisturbed, folder) == []
