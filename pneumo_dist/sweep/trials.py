"""The work of one process of a sweep: it claims trials, trains their folds, and writes down how they ended."""

import hashlib
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Self

from optuna.pruners import MedianPruner
from optuna.trial import TrialState

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.load import LoadedConfig, load_config
from pneumo_dist.ranks.stop import SIGNALS
from pneumo_dist.runs.checkpoint import State
from pneumo_dist.runs.fold_run import checkpoints_of
from pneumo_dist.runs.repetitions import best_repetition, best_score, repetitions
from pneumo_dist.sweep.journal import Journal, Trial, trial_name
from pneumo_dist.sweep.space import Space, Value, overrides_of
from shards import console
from shards.errors import InputError

# Trials that must have ended before the first may be stopped early.
UNPRUNED_TRIALS = 5

EndsEarly = Callable[[str, Sequence[State]], bool]
HowEnded = Literal["trained", "stopped"]
# Trains a fold of a config, or resumes it. It is stopped by a signal, or if EndsEarly says so.
TrainFold = Callable[[LoadedConfig, int, EndsEarly], HowEnded]


class Failed(Exception):
    """A trial whose parameters cannot be trained. The message is the reason in one line."""


@dataclass(frozen=True)
class Sweep:
    """A search: the config, what varies, and where.

    Attributes:
        name: Name of the sweep, with which the names of its trials begin.
        config: YAML file of the experiment.
        overrides: Values of --set, which hold for all trials.
        space: The keys that vary.
        folds: Folds that each trial trains, in order.
        most: Number of trials.
        grid: Whether the trials are the combinations of the space instead of samples.
        prune: Number of epochs after which a trial may be stopped early; None to train all to the end.
        runs: Folder of all runs.
    """

    name: str
    config: Path
    overrides: tuple[str, ...]
    space: Space
    folds: tuple[int, ...]
    most: int
    grid: bool
    prune: int | None
    runs: Path

    @property
    def folder(self) -> Path:
        """Folder of the sweep's own files."""
        return self.runs / self.name

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the config that the trials vary, as it was when it was first read."""
        return self._digest_now()

    def _digest_now(self) -> str:
        experiment = load_config(self.config, self.overrides).experiment
        return hashlib.sha256(experiment.model_dump_json().encode()).hexdigest()

    def check_name(self) -> None:
        """Raise InputError unless an experiment can have the name of a trial."""
        try:
            load_config(self.config, [*self.overrides, f"name={trial_name(self.name, 0)}"])
        except InputError as error:
            raise InputError(f"--name {self.name}: {error}; give letters, digits, - and _") from None

    def load(self, number: int, parameters: Mapping[str, Value]) -> LoadedConfig:
        """Return the config of a trial.

        Raises:
            InputError: The config has changed since the sweep began.
            Failed: These values do not go together.
        """
        if self._digest_now() != self.digest:
            raise InputError(
                f"{self.config}: changed while the sweep ran; change it back, or begin another with --name"
            )
        name = trial_name(self.name, number)
        try:
            return load_config(self.config, [*self.overrides, *overrides_of(parameters), f"name={name}"])
        except InputError as error:
            raise Failed(str(error)) from None


class Signals:
    """Notes a signal between two trials. During training the fold's own handlers are in their place."""

    def __init__(self) -> None:
        self.stopped = False
        self._before: dict[signal.Signals, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def run_trials(sweep: Sweep, journal: Journal, train: TrainFold) -> bool:
    """Claim and train trials until there are none left; return False if a signal stopped it.

    Any number of processes may do so at once. A trial that lost its process comes first. An error that is not the fault
    of a trial's parameters is raised, and its trial is resumed by the next process.
    """
    seed = load_config(sweep.config, sweep.overrides).experiment.seed
    combinations = sweep.space.combinations() if sweep.grid else []

    def suggest(number: int) -> Mapping[str, Value] | None:
        if sweep.grid and number >= len(combinations):
            return None
        folder = sweep.runs / trial_name(sweep.name, number)
        if folder.exists():
            # Training would resume there, with other parameters than the trial's.
            raise InputError(f"{folder}: is not of this sweep; remove it, or begin another sweep with --name")
        return combinations[number] if sweep.grid else journal.sample(number, sweep.space, seed)

    with Signals() as signals:
        while not signals.stopped:
            with journal.claim(sweep.most, suggest, sweep.space) as trial:
                if trial is None:
                    return True
                values = ", ".join(overrides_of(trial.parameters))
                console.say(f"trial {trial.number} {'resumes' if trial.is_resumed else 'begins'}: {values}")
                if not TrialRun(sweep, journal, trial, signals).train(train):
                    return False
    return False


class TrialRun:
    """A claimed trial in training."""

    def __init__(self, sweep: Sweep, journal: Journal, trial: Trial, signals: Signals) -> None:
        self._sweep, self._journal, self._trial, self._signals = sweep, journal, trial, signals
        # Of the folds that are trained: their scores, and what was reported after each of their epochs.
        self._scores: list[float] = []
        self._reported: list[float] = []
        self._is_pruned = False

    def train(self, train: TrainFold) -> bool:
        """Train the folds and write how the trial ended; return False if a signal stopped it."""
        number, journal = self._trial.number, self._journal
        try:
            config = self._sweep.load(number, self._trial.parameters)
            for fold in self._sweep.folds:
                if self._signals.stopped:
                    return False
                folder = self._sweep.runs / config.experiment.name / f"fold{fold}"
                if train(config, fold, partial(self._ends_early, config.experiment, folder)) == "stopped":
                    if self._is_pruned:
                        self._end_pruned()
                    return self._is_pruned
                self._reported += running_means(self._scores, _epochs(config.experiment, folder))
                journal.report(self._trial, self._reported)
                self._scores.append(fold_score(config.experiment, folder))
        except Failed as error:
            journal.end(self._trial, TrialState.FAIL, error=str(error))
            console.warn(f"trial {number} failed: {error}")
            return True
        score = sum(self._scores) / len(self._scores)
        journal.end(self._trial, TrialState.COMPLETE, score)
        console.say(f"trial {number} scores {score:.4f}")
        return True

    def _ends_early(self, experiment: Experiment, folder: Path, stage: str, history: Sequence[State]) -> bool:
        """Report the epochs so far and return whether to stop the trial."""
        means = running_means(self._scores, _epochs(experiment, folder, stage, history))
        stored = self._journal.report(self._trial, [*self._reported, *means])
        if self._sweep.prune is not None:
            pruner = MedianPruner(UNPRUNED_TRIALS, n_warmup_steps=self._sweep.prune - 1)
            self._is_pruned = pruner.prune(self._journal.study, stored)
        # A signal may have come before the training of this fold listened to signals.
        return self._is_pruned or self._signals.stopped

    def _end_pruned(self) -> None:
        values = self._journal.report(self._trial, ()).intermediate_values
        last = values[max(values)]
        self._journal.end(self._trial, TrialState.PRUNED, last)
        console.say(f"trial {self._trial.number} is pruned at {last:.4f}")


def fold_score(experiment: Experiment, folder: Path) -> float:
    """Return the score of a trained fold: that of the best epoch of the last stage, whose checkpoints predict."""
    return best_score(best_repetition(experiment.stages[-1], folder).header()["history"])


def _epochs(
    experiment: Experiment, folder: Path, current: str | None = None, history: Sequence[State] = ()
) -> list[list[float]]:
    """Return the scores of a fold's epochs by stage. The `current` stage may have saved less than its `history`."""
    found: list[list[float]] = []
    for stage in experiment.stages:
        for repetition in repetitions(stage):
            if repetition.name == current:
                return [*found, [float(epoch["score"]) for epoch in history]]
            checkpoints = checkpoints_of(folder, repetition.name)
            if checkpoints.newest() is None:
                break
            found.append([float(epoch["score"]) for epoch in checkpoints.header()["history"]])
    return found


def running_means(scores: Sequence[float], epochs: Sequence[Sequence[float]]) -> list[float]:
    """Return after each epoch what the trial's score would be if its stage ended there.

    `scores` are those of the finished folds, `epochs` those of the current fold by stage.
    """
    bests = [max(stage[: end + 1]) for stage in epochs for end in range(len(stage))]
    return [(sum(scores) + best) / (len(scores) + 1) for best in bests]
