"""The stages of one fold, in order: where each starts, and which are done."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pneumo_dist import __version__
from pneumo_dist.config.experiment import Experiment, StageConfig
from pneumo_dist.network.fit import check_weights, meta_model
from pneumo_dist.ranks.ranks import Ranks, on_rank_0
from pneumo_dist.ranks.stop import StopAgreement
from pneumo_dist.runs.checkpoint import (
    best_files,
    check_whole,
    list_checkpoints,
    newest_good,
    newest_state,
    read_checkpoint,
    read_trained,
    remove_newer,
    remove_stale_temporaries,
    weights_of,
)
from pneumo_dist.runs.heartbeat import Heartbeat
from pneumo_dist.runs.lineage import Ancestor, Lineage, check_same_run, stage_lineage
from pneumo_dist.runs.repetitions import best_score, next_name
from pneumo_dist.runs.state import experiment_of
from pneumo_dist.source import source_digest
from pneumo_dist.train.stage import StageRun, Start, on_present_terms
from shards.dataset.table import Shards
from shards.errors import InputError
from shards.files import atomic_write

State = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """A stage that another may start from: the folder of its checkpoints, its validated epochs and its lineage."""

    checkpoints: Path
    history: Sequence[State]
    lineage: Lineage

    @property
    def score(self) -> float:
        return best_score(self.history)


def train_fold(
    experiment: Experiment,
    fold: int,
    shards: Shards,
    folder: Path,
    ranks: Ranks,
    resolved: Callable[[Experiment], str],
    profile: bool = False,
    heartbeat: Heartbeat | None = None,
) -> None:
    """Train the stages of one fold in `folder`, each from the best checkpoint of the one before.

    A finished stage is skipped, an unfinished one resumed; one that has more epochs now is trained on while nothing has
    started from it. `resolved` gives the text of config.yaml, which is written before a stage is trained and tells
    finished stages as they were. `profile` traces a few steps of each stage; `heartbeat` hears of every step. Raises
    Preempted once a signal's checkpoint is written.
    """
    heartbeat = heartbeat or Heartbeat(None, {})
    as_ran = experiment

    def train(stage: StageConfig, repetition: StageConfig, start: Start) -> Sequence[State]:
        nonlocal as_ran
        if start.recorded is not None and start.is_over:
            as_ran = _with_stage(as_ran, start.recorded)
        elif ranks.is_main:
            atomic_write(folder / "config.yaml", resolved(as_ran))
        run = StageRun(experiment, repetition, fold, shards, folder, ranks, stop, heartbeat, start, profile)
        return run.train()

    with StopAgreement(ranks) as stop:
        _each_stage(experiment, fold, shards, folder, ranks, _newest, train)


def check_resume(experiment: Experiment, fold: int, shards: Shards, folder: Path) -> None:
    """Raise InputError where `train_fold` would not go on in this folder, or not start; nothing is written."""

    def look(stage: StageConfig, repetition: StageConfig, start: Start) -> Sequence[State] | None:
        if start.weights is not None:
            check_weights(start.weights, meta_model(experiment.model), stage.name)
        return start.state["history"] if start.state is not None and start.is_over else None

    def newest(checkpoints: Path) -> str | None:
        found = newest_good(checkpoints)
        return None if found is None else str(found.path)

    alone = Ranks(0, 1, 0, torch.device("cpu"))
    _each_stage(experiment, fold, shards, folder, alone, newest, look)


def _each_stage(
    experiment: Experiment,
    fold: int,
    shards: Shards,
    folder: Path,
    ranks: Ranks,
    newest: Callable[[Path], str | None],
    train: Callable[[StageConfig, StageConfig, Start], Sequence[State] | None],
) -> None:
    """Call `train` for each stage and its repetitions, in order, with where it starts, until it returns no epochs."""
    before = _initial(experiment, folder, ranks)
    for number, stage in enumerate(experiment.stages):
        followers = [later.name for later in experiment.stages[number + 1 :]]
        repetition, best = stage, None
        while True:
            following = [next_name(stage.name, repetition.name), *followers]
            own = on_rank_0(ranks, partial(newest, folder / repetition.name / "checkpoints"))
            start = _start(experiment, stage, repetition, fold, shards, folder, ranks, own, best or before, following)
            history = train(stage, repetition, start)
            if history is None:
                return
            trained = Trained(folder / repetition.name / "checkpoints", history, start.lineage)
            gained = best is None or trained.score > best.score
            if gained:
                best = trained
            if stage.repeat is None or not gained:
                break
            repetition = stage.model_copy(update={"name": next_name(stage.name, repetition.name)})
        before = best


def _with_stage(experiment: Experiment, stage: StageConfig) -> Experiment:
    """Return an experiment with one of its stages, by name, as given."""
    stages = tuple(stage if own.name == stage.name else own for own in experiment.stages)
    return experiment.model_copy(update={"stages": stages})


def _warn_of_other_code(state: State, path: Path) -> None:
    """Warn where a stage that is not finished goes on with other code than it was trained with so far."""
    code = (state.get("version", "not noted"), state.get("source", "not noted"))
    if code != (__version__, source_digest()) and not state["position"]["finished"]:
        warnings.warn(
            f"{path}: was written by pneumo_dist {code[0]} (source {code[1]}), this is {__version__} (source "
            f"{source_digest()}); training goes on, and may not end with the same bits",
            stacklevel=2,
        )


def _initial(experiment: Experiment, folder: Path, ranks: Ranks) -> Trained | None:
    """Return the other experiment's stage that the first one starts from, where the config names one."""
    if experiment.init is None:
        return None
    stage = folder.parent.parent / experiment.init.experiment / folder.name / experiment.init.stage / "checkpoints"

    def read() -> State:
        state = newest_state(stage)
        return {"history": state["history"], "lineage": state["lineage"]}

    found = on_rank_0(ranks, read)
    return Trained(stage, found["history"], Lineage(tuple(Ancestor(**each) for each in found["lineage"])))


def _start(
    experiment: Experiment,
    stage: StageConfig,
    repetition: StageConfig,
    fold: int,
    shards: Shards,
    folder: Path,
    ranks: Ranks,
    own: str | None,
    before: Trained | None,
    following: Sequence[str],
) -> Start:
    """Return where a stage goes on from, the same on every rank: its own checkpoint, or the best of the one before.

    `following` are the names of the stages that may have started from it. Raises InputError, on every rank, where this
    config or these films cannot go on from it.
    """
    lineage = stage_lineage(experiment, repetition, fold, shards, before.lineage if before else None)
    if own is not None:
        state = read_trained(Path(own))
        check_same_run(state, Path(own), experiment, stage, lineage)
        recorded = _recorded(state, stage.name, Path(own))
        state = on_present_terms(state, repetition)
        if recorded is not None and not state["position"]["finished"]:
            _check_not_left(recorded, state, folder, following, Path(own), ranks)
        _warn_of_other_code(state, Path(own))
        return Start(state, None, lineage, recorded)
    if before is None:
        return Start(None, None, lineage)
    best = on_rank_0(ranks, lambda: _best(before))
    return Start(None, weights_of(read_checkpoint(Path(best))), lineage)


def _recorded(state: State, name: str, path: Path) -> StageConfig | None:
    """Return a stage's settings as a finished stage's checkpoint tells them; None for an unfinished one."""
    if not state["position"]["finished"]:
        return None
    return experiment_of(state, path).stage(name)


def _check_not_left(
    recorded: StageConfig, state: State, folder: Path, following: Sequence[str], path: Path, ranks: Ranks
) -> None:
    """Raise InputError where a finished stage would train on and another stage has started from its weights."""

    def started() -> str | None:
        return next((name for name in following if list_checkpoints(folder / name / "checkpoints")), None)

    follower = on_rank_0(ranks, started)
    if follower is not None:
        raise InputError(
            f"{path}: stage {recorded.name} was finished after {state['position']['epoch']} epochs and stage "
            f"{follower} has started from it; set its epochs ({recorded.epochs}) and early_stop "
            f"({recorded.early_stop}) back, or train under another experiment name"
        )


def _newest(checkpoints: Path) -> str | None:
    """Return the newest whole checkpoint of a stage, where it has one."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(checkpoints)
    newest = newest_good(checkpoints)
    if newest is None:
        return None
    remove_newer(newest)
    return str(newest.path)


def _best(trained: Trained) -> str:
    """Return the best checkpoint of a stage. Raises InputError where it is damaged."""
    (best,) = best_files(trained.checkpoints, trained.history, 1)
    check_whole(best)
    return str(best.path)
