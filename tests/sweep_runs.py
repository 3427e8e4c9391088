"""Sweeps of a tiny experiment on synthetic batches, and what remains of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from builders import tiny_experiment

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.load import LoadedConfig
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.stop import Preempted
from pneumo_dist.runs.checkpoint import State
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.sweep.journal import FORMAT, FORMAT_VERSION, Journal, RecordModel, begin
from pneumo_dist.sweep.space import Space, load_space
from pneumo_dist.sweep.trials import EndsEarly, HowEnded, Sweep, TrainFold
from pneumo_dist.train.fold import train_fold
from shards.dataset.table import Shards

GRID = "optim.lr: {choices: [0.001, 0.1]}\nstages.s1.epochs: {whole: [1, 2]}\n"
SAMPLED = "optim.lr: {log: [1e-4, 1e-1]}\nloss: {choices: [{bce: 1}, {dice: 1}]}\n"


class Killed(BaseException):
    """The end of a process that does not tidy up."""


def write_experiment(folder: Path) -> Path:
    """Write the config of two stages, of two epochs each, and return its path."""
    path = folder / "x.yaml"
    path.write_text(tiny_experiment({}, {}).model_dump_json())  # JSON is YAML
    return path


def write_space(folder: Path, text: str) -> Space:
    path = folder / "space.yaml"
    path.write_text(text)
    return load_space(path)


def sweep_of(folder: Path, text: str, most: int = 4, **options: Any) -> Sweep:
    """Return a sweep of the tiny experiment in a folder, by default on fold 0."""
    settings: dict[str, Any] = {"overrides": (), "folds": (0,), "grid": text == GRID, "prune": None, **options}
    config, space = write_experiment(folder), write_space(folder, text)
    return Sweep(name="s", config=config, space=space, most=most, runs=folder / "runs", **settings)


def record_of(sweep: Sweep) -> RecordModel:
    return RecordModel(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        name=sweep.name,
        config=sweep.digest,
        space=sweep.space.plain(),
        grid=sweep.grid,
        folds=list(sweep.folds),
        shards="",
        seed=0,
        prune=sweep.prune,
    )


def journal_of(sweep: Sweep) -> Journal:
    """Open the sweep as a new process does."""
    return begin(sweep.folder, record_of(sweep))


def trainer(sweep: Sweep, shards: Shards, dies: Callable[[str, str, Sequence[State]], bool] | None = None) -> TrainFold:
    """Return the function that trains a fold in this process.

    `dies` gets the experiment's name, the stage and its history between two epochs, after they are reported. It returns
    whether the process ends there.
    """

    def train(config: LoadedConfig, fold: int, ends_early: EndsEarly) -> HowEnded:
        name = config.experiment.name
        run = FoldRun(config.experiment, fold, shards, sweep.runs / name / f"fold{fold}", Ranks.alone())
        try:
            train_fold(run, Experiment.model_dump_json, ends_early=partial(between, name, ends_early))
        except Preempted:
            return "stopped"
        return "trained"

    def between(name: str, ends_early: EndsEarly, stage: str, history: Sequence[State]) -> bool:
        answer = ends_early(stage, history)
        if dies is not None and dies(name, stage, history):
            raise Killed
        return answer

    return train


def what_remains(sweep: Sweep) -> dict[int, Mapping[str, Any]]:
    """Return all that a sweep has found out, by trial. A checkpoint's name holds the digest of its content."""
    return {
        trial.number: {
            "state": trial.state.name,
            "parameters": dict(trial.params),
            "score": trial.value,
            "epochs": dict(trial.intermediate_values),
            "checkpoints": sorted(
                str(path.relative_to(sweep.runs))
                for path in sweep.runs.glob(f"s-{trial.number:03d}/fold*/*/checkpoints/step-*.pt")
            ),
        }
        for trial in journal_of(sweep).trials()
    }
