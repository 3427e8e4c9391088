"""Where a stage starts: at its own checkpoint, at the best weights of the stage before it, or at the beginning."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumo_dist import __version__
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.ranks.ranks import on_rank_0
from pneumo_dist.runs.checkpoint import State, from_training, map_checkpoint, read_header, top_steps, weights_of
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.fold_run import FoldRun, checkpoints_of
from pneumo_dist.runs.lineage import Ancestor, Lineage, check_same_run, file_lineage, stage_lineage
from pneumo_dist.runs.repetitions import best_score
from pneumo_dist.runs.state import experiment_of
from pneumo_dist.source import source_digest
from shards.errors import InputError

NOTHING_TO_BEAT = -1.0


@dataclass
class Position:
    """Progress of a stage.

    Attributes:
        epoch: Finished epochs.
        step: Optimizer steps of the current epoch.
        total: Optimizer steps of the whole stage.
        finished: Whether the stage is trained to its end.
        bad_steps: Number of skipped steps in a row, up to now.
    """

    epoch: int = 0
    step: int = 0
    total: int = 0
    finished: bool = False
    bad_steps: int = 0


@dataclass(frozen=True)
class Start:
    """Where a stage starts.

    Attributes:
        lineage: The lineage of the stage.
        state: State of the stage's own checkpoint, without its tensors.
        checkpoint: That checkpoint, or the one whose weights the stage starts from; None if it starts from neither.
        recorded: Settings of the stage if it was finished before.
        to_beat: Score that an epoch must exceed to count as better, for early stopping.
    """

    lineage: Lineage
    state: State | None = None
    checkpoint: Path | None = None
    recorded: StageConfig | None = None
    to_beat: float = NOTHING_TO_BEAT

    @property
    def is_finished(self) -> bool:
        """Whether no epoch is left to train."""
        return self.state is not None and bool(self.state["position"]["finished"])

    def map_state(self) -> State | None:
        """Map the whole state of the stage's own checkpoint. It is large: drop it once it is restored."""
        if self.state is None or self.checkpoint is None:
            return None
        return {**map_checkpoint(self.checkpoint), "position": self.state["position"]}

    def map_weights(self) -> State | None:
        """Map the weights of another stage, if the stage starts from those. Copy them, and drop them."""
        if self.state is not None or self.checkpoint is None:
            return None
        return weights_of(map_checkpoint(self.checkpoint))


@dataclass(frozen=True)
class Trained:
    """A trained stage that another stage can start from."""

    checkpoints: CheckpointFolder
    history: Sequence[State]
    lineage: Lineage

    @property
    def score(self) -> float:
        return best_score(self.history)


def is_finished(
    stage: StageConfig, epoch: int, history: Sequence[Mapping[str, Any]], to_beat: float = NOTHING_TO_BEAT
) -> bool:
    """Return whether a stage ends before this epoch, counted from 0: it has no more epochs, or stops early.

    Patience counts the epochs after the best one, or all of them while none scores higher than `to_beat`.
    """
    if epoch >= stage.epochs:
        return True
    if stage.early_stop is None or not history:
        return False
    best = top_steps(history, 1)[0] if best_score(history) > to_beat else 0
    return len([epoch for epoch in history if epoch["step"] > best]) >= stage.early_stop


def initial(run: FoldRun) -> Trained | None:
    """Return the stage of another experiment that the first stage starts from, if the config names one.

    Raises InputError, on every rank, if that stage has no checkpoint.
    """
    init = run.experiment.init
    if init is None or init.experiment is None or init.stage is None:
        return None
    checkpoints = checkpoints_of(run.folder.parent.parent / init.experiment / run.folder.name, init.stage)

    def read() -> State:
        header = checkpoints.header()
        return {"history": header["history"], "lineage": header["lineage"]}

    header = on_rank_0(run.ranks, read)
    return Trained(checkpoints, header["history"], Lineage(tuple(Ancestor(**each) for each in header["lineage"])))


def find_start(
    run: FoldRun,
    stage: StageConfig,
    repetition: StageConfig,
    newest: Path | None,
    before: Trained | None,
    followers: Sequence[str],
) -> Start:
    """Return where a repetition of a stage starts, the same on every rank.

    Args:
        run: The fold's run.
        stage: The stage as the config describes it.
        repetition: The stage under the name of this repetition.
        newest: The repetition's newest checkpoint, if it has one.
        before: The stage whose best weights it starts from otherwise.
        followers: Names of the stages that may have started from it.

    Raises:
        InputError: This config or these films cannot resume from that checkpoint. Raised on every rank.
    """
    lineage = stage_lineage(run, repetition, before.lineage if before else file_lineage(run))
    to_beat = before.score if before and stage.init_from == "best_so_far" else NOTHING_TO_BEAT
    if newest is None:
        return Start(lineage, checkpoint=_best_checkpoint(run, before), to_beat=to_beat)
    header = from_training(read_header(newest), newest)
    check_same_run(run.experiment, header, newest, stage, lineage)
    was_finished = header["position"]["finished"]
    recorded = experiment_of(header, newest).stage(stage.name) if was_finished else None
    if is_finished(repetition, header["position"]["epoch"], header["history"], to_beat):
        return Start(lineage, _at(header, True), newest, recorded)
    _warn_of_other_code(header, newest)
    if recorded is not None:
        _check_no_follower(run, recorded, header, followers, newest)
    return Start(lineage, _at(header, False), newest, recorded, to_beat)


def _best_checkpoint(run: FoldRun, before: Trained | None) -> Path | None:
    if before is None:
        return None
    return Path(on_rank_0(run.ranks, lambda: str(before.checkpoints.best_whole(before.history).path)))


def _at(header: State, finished: bool) -> State:
    """Return what a header says, without its empty tensors, finished or not by the present epochs and early_stop."""
    plain = {name: value for name, value in header.items() if name not in ("model", "averaged", "optimizer")}
    return {**plain, "position": {**header["position"], "finished": finished}}


def _warn_of_other_code(state: State, path: Path) -> None:
    """Warn if a stage resumes with other code than it was trained with so far."""
    version, source = (state.get(name, "not noted") for name in ("version", "source"))
    if (version, source) != (__version__, source_digest()):
        warnings.warn(
            f"{path}: was written by pneumo_dist {version} (source {source}), this is {__version__} (source "
            f"{source_digest()}); training resumes, but may not end with the same bits",
            stacklevel=2,
        )


def _check_no_follower(run: FoldRun, recorded: StageConfig, state: State, followers: Sequence[str], path: Path) -> None:
    """Raise InputError if a finished stage would train on although another stage has started from its weights."""

    def started() -> str | None:
        return next((name for name in followers if run.checkpoints(name).files()), None)

    follower = on_rank_0(run.ranks, started)
    if follower is not None:
        raise InputError(
            f"{path}: stage {recorded.name} was finished after {state['position']['epoch']} epochs and stage "
            f"{follower} has started from it; set its epochs ({recorded.epochs}) and early_stop "
            f"({recorded.early_stop}) back, or train under another experiment name"
        )
