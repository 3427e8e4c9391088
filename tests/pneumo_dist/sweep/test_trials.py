"""Trials: their score, resumption after the end of a process, pruning, and parameters that cannot be trained."""

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pytest
from sweep_runs import (
    GRID,
    SAMPLED,
    Killed,
    journal_of,
    sweep_of,
    trainer,
    what_remains,
    write_experiment,
)

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.load import LoadedConfig
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.runs.checkpoint import State
from pneumo_dist.runs.fold_run import FoldRun, checkpoints_of
from pneumo_dist.runs.logs import read_epochs
from pneumo_dist.sweep.trials import UNPRUNED_TRIALS, EndsEarly, Failed, HowEnded, Sweep, run_trials, running_means
from pneumo_dist.train.fold import train_fold
from shards.dataset.table import Shards
from shards.errors import InputError


def logged(sweep: Sweep, number: int, fold: int, stage: str) -> list[float]:
    """Return the scores of a stage's epochs, from its log."""
    path = sweep.runs / f"s-{number:03d}/fold{fold}/{stage}/metrics.jsonl"
    return [epoch["score"] for epoch in read_epochs(path)]


def test_the_running_means_are_what_the_score_would_be() -> None:
    assert running_means([], [[0.1, 0.3, 0.2], [0.25, 0.4]]) == [0.1, 0.3, 0.3, 0.25, 0.4]
    assert running_means([0.5, 0.6], [[0.1]]) == [(0.5 + 0.6 + 0.1) / 3]
    assert running_means([0.5], []) == []


def test_a_trial_scores_the_mean_over_folds_of_the_last_stages_best_epoch(films: Shards, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, GRID, most=1, folds=(1, 0))
    assert run_trials(sweep, journal_of(sweep), trainer(sweep, films))
    (trial,) = journal_of(sweep).trials()
    one, zero = (max(logged(sweep, 0, fold, "s1")) for fold in (1, 0))
    assert trial.value == (one + zero) / 2
    expected, before = list[float](), list[float]()
    for fold in (1, 0):
        for stage in ("s0", "s1"):
            scores = logged(sweep, 0, fold, stage)
            bests = [max(scores[:end]) for end in range(1, len(scores) + 1)]
            expected += [(sum(before) + best) / (len(before) + 1) for best in bests]
        before.append(max(scores))
    # Fold 1 and fold 0, each with two epochs of s0 and one of s1.
    assert trial.intermediate_values == dict(enumerate(expected)) and len(expected) == 6


@pytest.mark.slow
@pytest.mark.parametrize(("text", "most"), [(GRID, 4), (SAMPLED, 3)], ids=["grid", "sampled"])
def test_killed_at_any_epoch_it_ends_as_if_undisturbed(films: Shards, tmp_path: Path, text: str, most: int) -> None:
    places = [tmp_path / "straight", tmp_path / "killed"]
    for place in places:
        place.mkdir()
    straight, killed = (sweep_of(place, text, most) for place in places)
    assert run_trials(straight, journal_of(straight), trainer(straight, films))
    moments = [("s-000", "s0", 1), ("s-001", "s1", 1), ("s-001", "s0", 1)]

    def dies(name: str, stage: str, history: Sequence[State]) -> bool:
        moment = (name, stage, len(history))
        if moment in moments:
            moments.remove(moment)
            return True
        return False

    deaths = 0
    while True:
        try:
            assert run_trials(killed, journal_of(killed), trainer(killed, films, dies))
            break
        except Killed:
            deaths += 1
    assert deaths == 3 - len(moments) >= 2
    remains = what_remains(straight)
    assert what_remains(killed) == remains
    assert list(remains) == list(range(most)) and all(each["state"] == "COMPLETE" for each in remains.values())


def test_a_trial_that_was_trained_but_not_written_down_is_not_trained_again(films: Shards, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, GRID, most=1)

    def train(config: LoadedConfig, fold: int, ends_early: EndsEarly) -> HowEnded:
        trainer(sweep, films)(config, fold, lambda stage, history: False)
        raise Killed

    with pytest.raises(Killed):
        run_trials(sweep, journal_of(sweep), train)
    folder = sweep.runs / "s-000/fold0"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoints/step-*.pt")}
    assert before and journal_of(sweep).trials()[0].intermediate_values == {}
    assert run_trials(sweep, journal_of(sweep), trainer(sweep, films))
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoints/step-*.pt")} == before
    (trial,) = journal_of(sweep).trials()
    assert trial.value == max(logged(sweep, 0, 0, "s1")) and len(trial.intermediate_values) == 3


@pytest.mark.slow
def test_pruned_trials_are_below_the_median_can_go_on_and_are_the_same_after_a_kill(
    films: Shards, tmp_path: Path
) -> None:
    places = [tmp_path / "straight", tmp_path / "killed"]
    for place in places:
        place.mkdir()
    straight, killed = (sweep_of(place, "seed: {whole: [0, 11]}", 12, grid=True, prune=2) for place in places)
    assert run_trials(straight, journal_of(straight), trainer(straight, films))
    trials = journal_of(straight).trials()
    states = [trial.state.name for trial in trials]
    assert set(states[:UNPRUNED_TRIALS]) == {"COMPLETE"} and set(states) == {"COMPLETE", "PRUNED"}
    for trial in trials:
        done = [other for other in trials[: trial.number] if other.state.name == "COMPLETE"]
        # Step 2 is the first epoch of the second stage, and the only one after two epochs with another one after it.
        best = max(trial.intermediate_values[step] for step in (0, 1, 2))
        is_below = len(done) >= UNPRUNED_TRIALS and best < median(each.intermediate_values[2] for each in done)
        assert (trial.state.name == "PRUNED") == is_below, trial.number
        assert len(trial.intermediate_values) == (3 if is_below else 4)
    number = states.index("PRUNED")
    assert trials[number].value == trials[number].intermediate_values[2]
    remains, deaths = what_remains(straight), iter([True])

    def dies(name: str, stage: str, history: Sequence[State]) -> bool:
        return name == f"s-{number:03d}" and stage == "s1" and next(deaths, False)

    with pytest.raises(Killed):
        run_trials(killed, journal_of(killed), trainer(killed, films, dies))
    assert run_trials(killed, journal_of(killed), trainer(killed, films, dies))
    assert what_remains(killed) == remains
    folder = straight.runs / f"s-{number:03d}/fold0"
    assert json.loads((folder / "preempted.json").read_text())["stage"] == "s1"
    config = straight.load(number, trials[number].params)
    train_fold(FoldRun(config.experiment, 0, films, folder, Ranks.alone()), Experiment.model_dump_json)
    assert [len(checkpoints_of(folder, stage).header()["history"]) for stage in ("s0", "s1")] == [2, 2]


@pytest.mark.slow
def test_parameters_that_cannot_be_trained_fail_alone(
    films: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "optim.ema_decay: {choices: [null, 0.9]}\noptim.swa_epochs: {choices: [null, 1]}\n"
    sweep = sweep_of(tmp_path, text, most=4, grid=True)
    whole = trainer(sweep, films)

    def train(config: LoadedConfig, fold: int, ends_early: EndsEarly) -> HowEnded:
        if config.experiment.stages[0].optim.swa_epochs == 1:
            raise Failed("too slow")
        return whole(config, fold, ends_early)

    assert run_trials(sweep, journal_of(sweep), train)
    remains = what_remains(sweep)
    assert [each["state"] for each in remains.values()] == ["COMPLETE", "FAIL", "COMPLETE", "FAIL"]
    assert remains[3]["checkpoints"] == [] and remains[3]["score"] is None
    errors = [trial.user_attrs.get("error", "") for trial in journal_of(sweep).trials()]
    assert errors[:3] == ["", "too slow", ""] and "both average the weights" in errors[3]
    assert capsys.readouterr().err.count("warning: trial") == 2


def test_other_errors_end_the_process_and_leave_the_trial_to_the_next(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, GRID, most=2)

    def refused(config: LoadedConfig, fold: int, ends_early: EndsEarly) -> HowEnded:
        raise InputError("the disk is full")

    with pytest.raises(InputError, match="the disk is full"):
        run_trials(sweep, journal_of(sweep), refused)
    assert [each["state"] for each in what_remains(sweep).values()] == ["RUNNING"]
    with journal_of(sweep).claim(2, lambda number: None, sweep.space) as trial:
        assert trial is not None and trial.is_resumed and trial.number == 0


def test_a_folder_of_other_runs_is_not_resumed(films: Shards, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, GRID)
    folder = sweep.runs / "s-000"
    folder.mkdir(parents=True)
    with pytest.raises(InputError, match=f"{folder}: is not of this sweep; remove it, or begin another"):
        run_trials(sweep, journal_of(sweep), trainer(sweep, films))
    assert journal_of(sweep).trials() == [] and list(folder.iterdir()) == []


def test_a_config_that_changes_meanwhile_is_refused(films: Shards, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, GRID)
    journal = journal_of(sweep)
    path = write_experiment(tmp_path)
    path.write_text(path.read_text().replace('"seed":0', '"seed":1'))
    with pytest.raises(InputError, match="changed while the sweep ran; change it back, or begin another with --name"):
        run_trials(sweep, journal, trainer(sweep, films))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in training", "between trials"])
def test_a_signal_stops_and_the_next_process_goes_on(films: Shards, tmp_path: Path, moment: str) -> None:
    sweep = sweep_of(tmp_path, GRID, most=2)
    before = signal.getsignal(signal.SIGUSR1)
    whole = trainer(sweep, films)

    def train(config: LoadedConfig, fold: int, ends_early: EndsEarly) -> HowEnded:
        def between(stage: str, history: Sequence[State]) -> bool:
            if moment == "in training":
                signal.raise_signal(signal.SIGUSR1)
            return ends_early(stage, history)

        done = whole(config, fold, between)
        signal.raise_signal(signal.SIGUSR1)
        return done

    assert not run_trials(sweep, journal_of(sweep), train)
    states = [each["state"] for each in what_remains(sweep).values()]
    assert states == (["RUNNING"] if moment == "in training" else ["COMPLETE"])
    assert signal.getsignal(signal.SIGUSR1) == before
    assert run_trials(sweep, journal_of(sweep), whole)
    assert [each["state"] for each in what_remains(sweep).values()] == ["COMPLETE", "COMPLETE"]
