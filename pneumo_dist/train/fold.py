"""Training of one fold: its stages in order, each from the best checkpoint of an earlier stage."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.network.fit import check_weights, meta_model
from pneumo_dist.ranks.ranks import on_rank_0
from pneumo_dist.ranks.stop import StopAgreement
from pneumo_dist.runs.checkpoint import CheckpointFile, State
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.runs.heartbeat import Heartbeat
from pneumo_dist.runs.repetitions import repetition_name, repetitions
from pneumo_dist.train.services import EndsEarly, Services, never
from pneumo_dist.train.stage import train_stage
from pneumo_dist.train.start import Start, Trained, find_start, initial
from shards.files import atomic_write


def train_fold(
    run: FoldRun,
    resolved: Callable[[Experiment], str],
    heartbeat: Heartbeat | None = None,
    profile: bool = False,
    ends_early: EndsEarly = never,
) -> None:
    """Train the stages of a fold.

    A finished stage is skipped and an unfinished one resumes. A finished stage whose config now has more epochs trains
    on, unless another stage has started from it.

    Args:
        run: The fold's run.
        resolved: Returns the text of config.yaml, which is written before a stage is trained. It describes finished
            stages with the settings that they were trained with.
        heartbeat: Told of every step.
        profile: Trace a few steps of each stage.
        ends_early: Asked between two epochs, also of a stage that resumes there, whether to stop.

    Raises:
        Preempted: A signal or `ends_early` stopped the run, and its checkpoint is written.
        InputError: The run cannot resume with this config or these films.
    """
    recorded: dict[str, StageConfig] = {}

    def train(repetition: StageConfig, start: Start) -> Sequence[State]:
        if start.recorded is not None and start.is_finished:
            recorded[start.recorded.name] = start.recorded
        elif run.ranks.is_main:
            atomic_write(run.folder / "config.yaml", resolved(_with_stages(run.experiment, recorded)))
        return train_stage(run, services, repetition, start)

    with StopAgreement(run.ranks) as stop:
        services = Services(stop, heartbeat or Heartbeat(None, {}), profile, ends_early)
        _each_stage(run, CheckpointFolder.recover, train)


def check_resume(run: FoldRun) -> None:
    """Raise InputError if `train_fold` could neither start nor resume; nothing is written."""

    def look(repetition: StageConfig, start: Start) -> Sequence[State] | None:
        if start.state is not None and start.is_finished:
            return list(start.state["history"])
        weights = start.map_weights()
        if weights is not None:
            check_weights(weights, meta_model(run.experiment.model), repetition.name)
        start.map_state()  # its tensors must be finite
        return None

    _each_stage(run, CheckpointFolder.newest, look)


def _each_stage(
    run: FoldRun,
    newest: Callable[[CheckpointFolder], CheckpointFile | None],
    visit: Callable[[StageConfig, Start], Sequence[State] | None],
) -> None:
    """Visit the stages in order, each with its start, until `visit` returns no history to continue from.

    `newest` returns the checkpoint that a stage resumes from.
    """
    names = [stage.name for stage in run.experiment.stages]
    previous = best = initial(run)
    for number, stage in enumerate(run.experiment.stages, 1):
        before = best if stage.init_from == "best_so_far" else previous
        previous = _best_repetition(run, newest, visit, stage, before, names[number:])
        if previous is None:
            return
        if best is None or previous.score > best.score:
            best = previous


def _best_repetition(
    run: FoldRun,
    newest: Callable[[CheckpointFolder], CheckpointFile | None],
    visit: Callable[[StageConfig, Start], Sequence[State] | None],
    stage: StageConfig,
    before: Trained | None,
    followers: Sequence[str],
) -> Trained | None:
    """Visit a stage and its repetitions while each scores higher than the checkpoint that it started from.

    Return the best of them, whether it scores higher than `before` or not, or None without a history.
    """
    best: Trained | None = None
    for number, repetition in enumerate(repetitions(stage), 1):
        checkpoints = run.checkpoints(repetition.name)
        path = on_rank_0(run.ranks, partial(_path_of, newest, checkpoints))
        upcoming = [repetition_name(stage.name, number + 1), *followers]
        started_from = best or before
        start = find_start(run, stage, repetition, path and Path(path), started_from, upcoming)
        history = visit(repetition, start)
        if history is None:
            return None
        trained = Trained(checkpoints, history, start.lineage)
        has_gained = started_from is None or trained.score > started_from.score
        if best is None or has_gained:
            best = trained
        # Earlier versions repeated a stage even if its first run had gained nothing. Such a fold resumes as it began.
        if not has_gained and not on_rank_0(run.ranks, partial(_has_files, run.checkpoints(upcoming[0]))):
            break
    return best


def _path_of(newest: Callable[[CheckpointFolder], CheckpointFile | None], checkpoints: CheckpointFolder) -> str | None:
    file = newest(checkpoints)
    return None if file is None else str(file.path)


def _has_files(checkpoints: CheckpointFolder) -> bool:
    return bool(checkpoints.files())


def _with_stages(experiment: Experiment, recorded: Mapping[str, StageConfig]) -> Experiment:
    """Return an experiment with some of its stages replaced, by name."""
    stages = tuple(recorded.get(stage.name, stage) for stage in experiment.stages)
    return experiment.model_copy(update={"stages": stages})
