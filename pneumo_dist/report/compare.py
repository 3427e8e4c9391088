"""Compares experiments and ensembles: scores, cost, and paired differences from the first of them."""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pneumo_dist.config.load import load_config
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.maps.store import MANIFEST, Predictions, open_predictions
from pneumo_dist.report.compare_rules import ComparedRule, rule_counts, score_films
from pneumo_dist.report.inputs import experiments_of, read_history, run_figures
from pneumo_dist.report.paired import Paired, aligned, paired
from pneumo_dist.runs.heartbeat import DONE
from pneumo_dist.runs.repetitions import best_score
from pneumo_dist.runs.status import UNKNOWN, FoldStatus, read_status
from pneumo_dist.scoring.arrays import Flags, Names
from pneumo_dist.scoring.counts import PixelCounts
from pneumo_dist.thresholds.file import read_thresholds
from pneumo_dist.thresholds.rules import THRESHOLDS
from pneumo_dist.thresholds.worth import Estimate, estimate
from shards.arrays import Floats
from shards.console import counted
from shards.errors import InputError


@dataclass(frozen=True)
class Differences:
    """Paired differences of a run's Dice from the first run's, on the films that both have.

    Out of fold, the thresholds of a film are tuned on the other folds, in both runs. None for what one of them lacks.
    """

    films: Paired | None = None
    positives: Paired | None = None
    holdout: Paired | None = None


@dataclass(frozen=True)
class ComparedRun:
    """A row of the comparison; a figure is None if the run lacks it.

    Attributes:
        name: Name of the run.
        films: Number of out-of-fold films.
        positives: Number of them with a pneumothorax.
        score: Their mean Dice under the tuned rule, which was tuned on them.
        unseen: Their mean Dice under rules of the other folds.
        positive_dice: Mean Dice of the positives under the tuned rule.
        holdout: Mean Dice of the holdout films under the tuned rule.
        best_epoch: Score of the best epoch of the last stage, mean over the folds that reached it; None for ensembles.
        hours: Hours of training steps, summed over stages, folds and experiments, without validation.
        images_per_s: Median training speed over the epochs, in films/s.
        differences: Differences from the first run that has predictions.
        notes: What is missing, or why it is not compared.
    """

    name: str
    films: int | None = None
    positives: int | None = None
    score: float | None = None
    unseen: Estimate | None = None
    positive_dice: float | None = None
    holdout: Estimate | None = None
    best_epoch: float | None = None
    hours: float | None = None
    images_per_s: float | None = None
    differences: Differences = Differences()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Scored:
    """Labelled predictions with their counts under the tuned rule, and the Dice under rules of other folds."""

    predictions: Predictions
    counts: PixelCounts
    unseen: Floats | None = None


@dataclass(frozen=True)
class _Run:
    """A run's row, its out-of-fold films and its holdout films."""

    row: ComparedRun
    films: _Scored | None = None
    holdout: _Scored | None = None


def run_folders(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the run folders at some paths by their names. A path may also be a folder of runs.

    Raises InputError for a path that is neither.
    """
    folders: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path}: no such folder; give folders of runs, such as RUNS/seunet")
        below = [path] if _is_run(path) else sorted(each for each in path.iterdir() if each.is_dir() and _is_run(each))
        if not below:
            raise InputError(
                f"{path}: holds no run; give a run's folder, such as RUNS/seunet, or the folder of all runs"
            )
        folders += [each for each in below if each.resolve() not in {known.resolve() for known in folders}]
    names = [each.resolve().name for each in folders]
    return {
        name if names.count(name) == 1 else str(folder): folder for name, folder in zip(names, folders, strict=True)
    }


def _is_run(path: Path) -> bool:
    return any((path / name).is_dir() for name in ("oof", "holdout")) or any(
        re.fullmatch("fold[0-9]+", each.name) for each in path.glob("fold*") if each.is_dir()
    )


def compare(
    folders: Mapping[str, Path], on_film: Callable[[], None] | None = None, rule: ComparedRule = "triplet"
) -> list[ComparedRun]:
    """Return a row for each run folder, in their order, under the tuned rule of a name.

    `on_film` is called for each film that was read. A run that cannot be scored has a row with the reason. Differences
    are from the first run that can be.
    """
    first: _Run | None = None
    rows = []
    for name, folder in folders.items():
        try:
            run = _read(name, folder, on_film, rule)
        except InputError as error:
            run = _Run(ComparedRun(name, notes=(str(error),)))
        if run.films is None or first is None:
            rows.append(run.row)
        else:
            rows.append(_against(run, first))
        first = first or (run if run.films is not None else None)
    return rows


def _read(name: str, folder: Path, on_film: Callable[[], None] | None, rule: ComparedRule) -> _Run:
    runs, notes = folder.resolve().parent, _unfinished(folder)
    if not (folder / "oof" / "predictions" / MANIFEST).exists():
        missing = "no out-of-fold predictions; run 'python -m pneumo_dist predict --split oof'"
        hours, speed = _cost([folder])
        notes.append(f"unfinished: {missing}")
        row = ComparedRun(name, best_epoch=_best_epoch(folder), hours=hours, images_per_s=speed, notes=tuple(notes))
        return _Run(row)
    predictions = open_predictions(folder / "oof" / "predictions")
    path = folder / "oof" / THRESHOLDS
    thresholds = read_thresholds(path) if path.exists() else None
    if thresholds is None or thresholds.digest != predictions.digest:
        notes.append(f"{THRESHOLDS} is {'missing' if thresholds is None else 'out of date'}: tuned for this comparison")
        thresholds = None
    scored = score_films(predictions, thresholds, rule, on_film)
    counts, dices, groups = scored.counts, scored.unseen, predictions.groups
    held, place = None, folder / "holdout" / "predictions"
    if (place / MANIFEST).exists():
        holdout = open_predictions(place)
        held = _Scored(holdout, rule_counts(holdout, scored.rule, on_film))
    hours, speed = _cost([runs / each for each in experiments_of(predictions, runs, folder.resolve().name)])
    row = ComparedRun(
        name,
        films=len(counts),
        positives=int(counts.positive.sum()),
        score=float(counts.dice.mean()),
        unseen=None if dices is None else estimate(dices, groups),
        positive_dice=float(counts.dice[counts.positive].mean()) if counts.positive.any() else None,
        holdout=None if held is None else estimate(held.counts.dice, held.predictions.groups),
        best_epoch=_best_epoch(folder),
        hours=hours,
        images_per_s=speed,
        notes=tuple(notes),
    )
    return _Run(row, _Scored(predictions, counts, dices), held)


def _unfinished(folder: Path) -> list[str]:
    """Return a note if folds of the run are not trained to their end. A fold without a heartbeat says nothing."""
    name = folder.resolve().name
    folds = [each for each in read_status(folder.resolve().parent, time.time()) if each.experiment == name]
    open_folds = [each for each in folds if each.state not in (DONE, UNKNOWN)]
    return [f"unfinished: {', '.join(map(_in_words, open_folds))}"] if open_folds else []


def _in_words(fold: FoldStatus) -> str:
    epoch = "" if fold.epoch is None else f" in epoch {fold.epoch} of {fold.epochs} of {fold.stage}"
    return f"fold {fold.fold} {fold.state}{epoch}"


def _best_epoch(run: Path) -> float | None:
    """Return the score of a sweep's trial: the best epoch of the last stage, mean over the folds that reached it."""
    best: dict[str, float] = {}
    for stage, folds in read_history(run).items():
        for fold, epochs in folds.items():
            stages = _stages(run / fold) if (run / fold / "config.yaml").exists() else ()
            if stages and _stage(run / fold, stage, stages) == stages[-1]:
                best[fold] = max(best.get(fold, 0.0), best_score(epochs))
    return sum(best.values()) / len(best) if best else None


def _cost(folders: Sequence[Path]) -> tuple[float | None, float | None]:
    """Return the hours of training steps and the median speed of some experiments; None where they are not known."""
    histories = {folder: read_history(folder) for folder in folders if folder.is_dir()}
    figures = run_figures(list(histories.values()))
    if math.isnan(figures.images_per_s):
        return None, None
    logged = [
        (folder / fold, stage, epochs)
        for folder, history in histories.items()
        for stage, folds in history.items()
        for fold, epochs in folds.items()
    ]
    if not all((fold / "config.yaml").exists() for fold, _, _ in logged):
        return None, figures.images_per_s
    seconds = 0.0
    for fold, stage, epochs in logged:
        steps = np.diff([0, *(epoch["step"] for epoch in epochs)])
        # An epoch that was resumed after its last step has no speed of its own.
        speeds = [epoch["images_per_s"] or figures.images_per_s for epoch in epochs]
        seconds += float((steps * _stage(fold, stage, _stages(fold)).global_batch / np.array(speeds)).sum())
    return seconds / 3600, figures.images_per_s


def _stage(fold: Path, name: str, stages: Sequence[StageConfig]) -> StageConfig:
    """Return the config of a fold's stage, or of the stage that it repeats."""
    by_name = {each.name: each for each in stages}
    base = name if name in by_name else name.rpartition("-")[0]
    if base not in by_name:
        raise InputError(f"{fold / 'config.yaml'}: has no stage {name}, which the fold trained; restore it from a copy")
    return by_name[base]


def _stages(fold: Path) -> Sequence[StageConfig]:
    return load_config(fold / "config.yaml", is_record=True).experiment.stages


def _against(run: _Run, first: _Run) -> ComparedRun:
    """Return a run's row with its differences from the first run, or the reason why there are none."""
    assert run.films is not None and first.films is not None
    row, mine, other = run.row, run.films, first.films
    digests = [each.predictions.manifest.get("dataset") for each in (mine, other)]
    if None not in digests and digests[0] != digests[1]:
        note = f"another dataset than {first.row.name}: not compared with it"
        return replace(row, notes=(*row.notes, note))
    try:
        pairs = aligned(mine.predictions, other.predictions)
        films = positives = holdout = None
        if mine.unseen is not None and other.unseen is not None:
            dices = mine.unseen[pairs[0]], other.unseen[pairs[1]]
            groups, is_positive = mine.predictions.groups[pairs[0]], mine.counts.positive[pairs[0]]
            films = paired("films", *dices, groups)
            positives = _of_positives(*dices, groups, is_positive)
        if run.holdout is not None and first.holdout is not None:
            held = aligned(run.holdout.predictions, first.holdout.predictions)
            dices = run.holdout.counts.dice[held[0]], first.holdout.counts.dice[held[1]]
            holdout = paired("holdout", *dices, run.holdout.predictions.groups[held[0]])
    except InputError:
        note = f"other films or labels than {first.row.name}: not compared with it"
        return replace(row, notes=(*row.notes, note))
    notes = row.notes
    if len(mine.predictions) != len(other.predictions):
        count = counted(len(pairs[0]), "film")
        notes = (
            *notes,
            f"{len(mine.predictions)} films, {first.row.name} has {len(other.predictions)}: {count} compared",
        )
    return replace(row, differences=Differences(films, positives, holdout), notes=notes)


def _of_positives(mine: Floats, other: Floats, groups: Names, positive: Flags) -> Paired | None:
    return paired("positive films", mine[positive], other[positive], groups[positive]) if positive.any() else None
