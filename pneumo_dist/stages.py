"""The stages of one fold, in order: where each starts, and which are done."""

from pathlib import Path
from typing import Any

from pneumo_dist.checkpoint import load_checkpoint, newest_good, remove_stale_temporaries, top_files, weights_of
from pneumo_dist.config import Experiment, StageConfig
from pneumo_dist.distributed import Ranks
from pneumo_dist.lineage import Ancestor, Lineage, check_same_run, stage_lineage
from pneumo_dist.preemption import StopAgreement
from pneumo_dist.trainer import StageRun, Start
from shards.files import atomic_write
from shards.table import Shards

State = dict[str, Any]


def train_fold(experiment: Experiment, fold: int, shards: Shards, folder: Path, ranks: Ranks, resolved: str) -> None:
    """Train the stages of one fold in `folder`, each from the best checkpoint of the one before.

    `resolved` is the text of config.yaml, written once the first stage has accepted the config. A finished stage is
    skipped, an unfinished one resumed. Raises Preempted once a signal's checkpoint is written.
    """
    stop = StopAgreement(ranks)
    previous = _initial(experiment, folder)
    try:
        for number, stage in enumerate(experiment.stages):
            repetition, best = stage, -1.0
            while True:
                start = _start(experiment, stage, repetition, fold, shards, folder, ranks, previous)
                if ranks.is_main and number == 0:
                    atomic_write(folder / "config.yaml", resolved)
                history = StageRun(experiment, repetition, fold, shards, folder, ranks, stop, start).train()
                score = max(record["score"] for record in history)
                gained = score > best
                if gained:
                    previous, best = folder / repetition.name / "checkpoints", score
                if stage.repeat is None or not gained:
                    break
                repetition = stage.model_copy(update={"name": next_name(stage.name, repetition.name)})
    finally:
        stop.close()


def next_name(stage: str, repetition: str) -> str:
    """Return the name of the repetition after this one: NAME, NAME-2, NAME-3, …"""
    number = 1 if repetition == stage else int(repetition.removeprefix(f"{stage}-"))
    return f"{stage}-{number + 1}"


def best_repetition(stage: StageConfig, folder: Path) -> str:
    """Return the name of the repetition whose weights go on: the last that gained. `folder` is the fold's."""
    name, best = stage.name, -1.0
    repetition = stage.name
    while stage.repeat is not None:
        newest = newest_good(folder / repetition / "checkpoints") if (folder / repetition).is_dir() else None
        history = load_checkpoint(newest.path)["history"] if newest else []
        score = max((record["score"] for record in history), default=-1.0)
        if score <= best:
            break
        name, best, repetition = repetition, score, next_name(stage.name, repetition)
    return name


def _initial(experiment: Experiment, folder: Path) -> Path | None:
    """Return the checkpoints of the other experiment's stage that the first one starts from."""
    if experiment.init is None:
        return None
    return folder.parent.parent / experiment.init.experiment / folder.name / experiment.init.stage / "checkpoints"


def _start(
    experiment: Experiment,
    stage: StageConfig,
    repetition: StageConfig,
    fold: int,
    shards: Shards,
    folder: Path,
    ranks: Ranks,
    previous: Path | None,
) -> Start:
    """Return where a stage goes on from, the same on every rank.

    Raises InputError where this config or these films cannot go on from it.
    """
    checkpoints = folder / repetition.name / "checkpoints"
    chosen = ranks.broadcast_json(_choose(checkpoints, previous) if ranks.is_main else None)
    own, before = (load_checkpoint(Path(name)) if name else None for name in chosen)
    ancestors = Lineage(tuple(Ancestor(**each) for each in before["lineage"])) if before else None
    lineage = stage_lineage(experiment, repetition, fold, shards, ancestors)
    if own is None:
        return Start(None, weights_of(before) if before else None, lineage)
    check_same_run(own, Path(chosen[0]), experiment, stage, lineage)
    return Start(own, None, lineage)


def _choose(checkpoints: Path, previous: Path | None) -> list[str | None]:
    """Return the newest whole checkpoint of a stage, and the best one of the stage before, where there are some."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(checkpoints)
    newest = newest_good(checkpoints)
    before = str(top_files(previous, 1)[0].path) if previous is not None else None
    return [str(newest.path) if newest else None, before]
