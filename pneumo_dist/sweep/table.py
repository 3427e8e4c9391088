"""The trials of a sweep as a table, and what the winner's score is worth."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from statistics import median
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from pneumo_dist.maps.store import MANIFEST, open_predictions
from pneumo_dist.report.compare_rules import score_films
from pneumo_dist.sweep.journal import ERROR, trial_name
from pneumo_dist.sweep.space import Value
from pneumo_dist.thresholds.file import read_thresholds
from pneumo_dist.thresholds.rules import THRESHOLDS
from pneumo_dist.thresholds.worth import Estimate, estimate
from shards.console import counted, printable
from shards.errors import InputError
from shards.spreadsheet import csv_text

UNFINISHED, DONE, PRUNED, FAILED = "unfinished", "done", "pruned", "failed"
_STATES = {TrialState.COMPLETE: DONE, TrialState.PRUNED: PRUNED, TrialState.FAIL: FAILED}
NOTHING = "–"


@dataclass(frozen=True)
class Row:
    """A trial in the table.

    Attributes:
        number: Number of the trial, counted from 0.
        name: Name of its experiment, which is also its folder below --runs.
        state: done, pruned, failed or unfinished, whether its process still runs or not.
        score: Mean over folds of the best epoch's score; of a trial that is not done, as far as it came.
        epochs: Number of validated epochs over all folds.
        parameters: Values of the space's keys.
        note: Why it failed.
    """

    number: int
    name: str
    state: str
    score: float | None
    epochs: int
    parameters: Mapping[str, Value]
    note: str = ""


def rows_of(trials: Sequence[FrozenTrial], sweep: str, keys: Sequence[str]) -> list[Row]:
    """Return the rows of a sweep's trials in the order of their numbers. `keys` are those of the space."""
    return [
        Row(
            trial.number,
            trial_name(sweep, trial.number),
            _STATES.get(trial.state, UNFINISHED),
            _score(trial),
            len(trial.intermediate_values),
            {key: trial.params[key] for key in keys},
            str(trial.user_attrs.get(ERROR, "")),
        )
        for trial in trials
    ]


def _score(trial: FrozenTrial) -> float | None:
    if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
        return trial.value
    return trial.intermediate_values[trial.last_step] if trial.last_step is not None else None


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Return rows from the best to the worst: trials that are done, then the others."""
    return sorted(rows, key=lambda row: (row.state != DONE, row.score is None, -(row.score or 0.0), row.number))


def winner(rows: Sequence[Row]) -> Row | None:
    """Return the trial with the best score among those that are done, the first of equal ones."""
    return next((row for row in ranked(rows) if row.state == DONE), None)


def lines(rows: Sequence[Row], keys: Sequence[str]) -> list[str]:
    """Return the table for a terminal, the best trial first, and notes below it."""
    table = [("trial", "state", "score", "epochs", *keys), *(_cells(row, keys) for row in ranked(rows))]
    shown = [tuple(map(printable, row)) for row in table]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    notes = [f"{row.name}: {printable(row.note)}" for row in rows if row.note]
    return [
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown),
        *notes,
    ]


def _cells(row: Row, keys: Sequence[str]) -> tuple[str, ...]:
    score = NOTHING if row.score is None else f"{row.score:.4f}"
    return (row.name, row.state, score, str(row.epochs), *(_short(row.parameters[key]) for key in keys))


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_csv(rows: Sequence[Row], keys: Sequence[str]) -> str:
    """Return the table as CSV with unrounded figures, in the order of the trials."""
    head = ("trial", "run", "state", "score", "epochs", *keys, "note")
    return csv_text(
        [
            head,
            *(
                (
                    row.number,
                    row.name,
                    row.state,
                    row.score,
                    row.epochs,
                    *(row.parameters[key] for key in keys),
                    row.note,
                )
                for row in rows
            ),
        ]
    )


@dataclass(frozen=True)
class OutOfFold:
    """The winner's score with thresholds that its films did not choose: films of all folds, and the estimate."""

    films: int
    dice: Estimate


def out_of_fold(folder: Path) -> OutOfFold | str:
    """Return the cross-tuned score of a run, or why there is none. Holdout predictions are not opened.

    `folder` is the run's, below --runs. The score is that of `compare`: the Dice of each film under the triplet that
    the other folds chose.
    """
    place = folder / "oof" / "predictions"
    if not (place / MANIFEST).exists():
        return "it has no out-of-fold predictions"
    try:
        predictions = open_predictions(place)
        path = folder / "oof" / THRESHOLDS
        thresholds = read_thresholds(path) if path.exists() else None
        is_current = thresholds is not None and thresholds.digest == predictions.digest
        scored = score_films(predictions, thresholds if is_current else None, "triplet")
    except InputError as error:
        return str(error)
    if scored.unseen is None:
        return "thresholds cannot be tuned on the other folds of each fold"
    return OutOfFold(len(predictions), estimate(scored.unseen, predictions.groups))


def summary(rows: Sequence[Row], sweep: Mapping[str, Any], runs: Path, shards: str = "SHARDS") -> list[str]:
    """Return what came out of a sweep: the winner, how far it is from the others, and how optimistic its score is.

    Args:
        rows: The trials.
        sweep: The sweep's settings, as sweep.json has them.
        runs: Folder of all runs.
        shards: Folder of the shards, for the commands that are printed.
    """
    count = Counter(row.state for row in rows)
    states = ", ".join(f"{count[state]} {state}" for state in (DONE, PRUNED, FAILED, UNFINISHED) if count[state])
    best = winner(rows)
    if best is None or best.score is None:
        return [f"{counted(len(rows), 'trial')}{f': {states}' if states else ''}; none is done"]
    scores = [row.score for row in rows if row.state == DONE and row.score is not None]
    folds = f"fold{'s' * (len(sweep['folds']) > 1)} {', '.join(map(str, sweep['folds']))}"
    found = [
        f"{counted(len(rows), 'trial')}: {states}",
        f"best: {best.name}, score {best.score:.4f} on {folds}, {best.score - median(scores):.4f} above the median of "
        f"the {counted(len(scores), 'trial')} done",
        f"this score is too high: it is the best of {counted(len(scores), 'trial')} and of the epochs of each, on the "
        "same films and with thresholds that suit these films",
    ]
    outside = out_of_fold(runs / best.name)
    if isinstance(outside, OutOfFold):
        dice = outside.dice
        found.append(
            f"cross-tuned score of {best.name}: {dice.mean:.4f} ({dice.low:.4f} to {dice.high:.4f}) on the "
            f"{counted(outside.films, 'film')} of all folds; films of {folds} still chose the trial"
        )
        return found
    config = runs / best.name / f"fold{sweep['folds'][0]}" / "config.yaml"
    where = f"--config {quote(str(config))} --shards {quote(shards)} --runs {quote(str(runs))}"
    return [
        *found,
        f"its cross-tuned score is not known ({outside}); for it, run",
        f"  python -m pneumo_dist train {where} --folds all",
        f"  python -m pneumo_dist predict {where} --split oof",
        f"  python -m pneumo_dist sweep --show --name {sweep['name']} --runs {quote(str(runs))}",
    ]
