"""The table of a sweep, its winner, and what is said about the winner's score."""

import csv
import io
import shutil
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from optuna.trial import TrialState
from sweep_runs import SAMPLED, journal_of, sweep_of
from tiny_runs import Trained, stored

from pneumo_dist.report.compare import compare
from pneumo_dist.sweep.table import OutOfFold, Row, as_csv, lines, out_of_fold, ranked, rows_of, summary, winner

KEYS = ("optim.lr", "loss")


def row(number: int, state: str, score: float | None, note: str = "", loss: str = "{bce: 1}") -> Row:
    return Row(number, f"s-{number:03d}", state, score, 3, {"optim.lr": 0.000123456, "loss": loss}, note)


ROWS = [
    row(0, "done", 0.5),
    row(1, "pruned", 0.9),
    row(2, "failed", None, "out of GPU memory"),
    row(3, "done", 0.75, loss="=1+1"),
    row(4, "unfinished", 0.8),
    row(5, "done", 0.75),
    row(6, "unfinished", None),
]
RECORD: dict[str, Any] = {"name": "s", "folds": [1]}


def test_trials_that_are_done_come_first_and_only_they_can_win() -> None:
    assert [each.number for each in ranked(ROWS)] == [3, 5, 0, 1, 4, 2, 6]
    best = winner(ROWS)
    assert best is not None and best.number == 3
    assert winner([each for each in ROWS if each.state != "done"]) is None


def test_rows_are_those_of_the_journal(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, SAMPLED)
    journal = journal_of(sweep)
    ends = [(TrialState.COMPLETE, 0.5), (TrialState.PRUNED, 0.25), (TrialState.FAIL, None)]
    for state, score in ends:
        with journal.claim(9, lambda number: {"optim.lr": 0.01, "loss": "{bce: 1}"}, sweep.space) as trial:
            assert trial is not None
            journal.report(trial, [0.125, 0.25])
            journal.end(trial, state, score, "no" if state is TrialState.FAIL else "")
    with journal.claim(9, lambda number: {"optim.lr": 0.1, "loss": "{dice: 1}"}, sweep.space) as trial:
        assert trial is not None
        journal.report(trial, [0.5])
        rows = rows_of(journal.trials(), "s", list(sweep.space.parameters))
    assert [(each.name, each.state, each.score, each.epochs, each.note) for each in rows] == [
        ("s-000", "done", 0.5, 2, ""),
        ("s-001", "pruned", 0.25, 2, ""),
        ("s-002", "failed", 0.25, 2, "no"),
        ("s-003", "unfinished", 0.5, 1, ""),
    ]
    assert rows[3].parameters == {"optim.lr": 0.1, "loss": "{dice: 1}"}


def test_the_table_for_a_terminal() -> None:
    assert lines([ROWS[2], ROWS[0], row(7, "done", 0.6, loss="\x1b[2J")], KEYS) == [
        "trial  state   score   epochs  optim.lr   loss",
        "s-007  done    0.6000  3       0.0001235  \\x1b[2J",
        "s-000  done    0.5000  3       0.0001235  {bce: 1}",
        "s-002  failed  –       3       0.0001235  {bce: 1}",
        "s-002: out of GPU memory",
    ]


def test_the_csv_has_all_digits_and_no_formula() -> None:
    read = list(csv.reader(io.StringIO(as_csv(ROWS, KEYS))))
    assert read[0] == ["trial", "run", "state", "score", "epochs", "optim.lr", "loss", "note"]
    assert read[3] == ["2", "s-002", "failed", "", "3", "0.000123456", "{bce: 1}", "out of GPU memory"]
    assert read[4][3:7] == ["0.75", "3", "0.000123456", "'=1+1"] and len(read) == 8


def test_the_summary_says_how_far_the_winner_is_from_the_others(tmp_path: Path) -> None:
    found = summary(ROWS, RECORD, tmp_path, "films")
    assert found[0] == "7 trials: 3 done, 1 pruned, 1 failed, 2 unfinished"
    spread = 0.75 - median([0.5, 0.75, 0.75])
    assert found[1] == f"best: s-003, score 0.7500 on fold 1, {spread:.4f} above the median of the 3 trials done"
    assert "the best of 3 trials" in found[2] and "too high" in found[2]
    config = tmp_path / "s-003/fold1/config.yaml"
    assert found[3:] == [
        "its cross-tuned score is not known (it has no out-of-fold predictions); for it, run",
        f"  python -m pneumo_dist train --config {config} --shards films --runs {tmp_path} --folds all",
        f"  python -m pneumo_dist predict --config {config} --shards films --runs {tmp_path} --split oof",
        f"  python -m pneumo_dist sweep --show --name s --runs {tmp_path}",
    ]
    assert summary([], RECORD, tmp_path) == ["0 trials; none is done"]
    assert summary([ROWS[4]], RECORD, tmp_path) == ["1 trial: 1 unfinished; none is done"]


@pytest.fixture(scope="module")
def predicted(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with out-of-fold predictions, and with damaged predictions of a holdout."""
    folder = tmp_path_factory.mktemp("sweep") / "s-003"
    shutil.copytree(trained.runs / "plain", folder, symlinks=True)
    stored(trained, trained.ensemble(), folder / "oof/predictions", "oof")
    return folder


def test_the_cross_tuned_score_is_that_of_compare(predicted: Path) -> None:
    found = out_of_fold(predicted)
    (compared,) = compare({"s-003": predicted})
    assert isinstance(found, OutOfFold) and compared.unseen is not None
    assert found.dice == compared.unseen and found.films == compared.films == 12
    said = summary(ROWS, {**RECORD, "folds": [0, 1]}, predicted.parent)
    mean, low, high = (f"{each:.4f}" for each in (found.dice.mean, found.dice.low, found.dice.high))
    assert said[3:] == [
        f"cross-tuned score of s-003: {mean} ({low} to {high}) on the 12 films of all folds; films of folds 0, 1 still "
        "chose the trial"
    ]


def test_predictions_of_a_holdout_are_not_opened(predicted: Path) -> None:
    before = out_of_fold(predicted)
    (predicted / "holdout/predictions").mkdir(parents=True)
    (predicted / "holdout/predictions/manifest.json").write_text("{")
    (compared,) = compare({"s-003": predicted})
    assert compared.films is None and "holdout" in compared.notes[0]
    assert out_of_fold(predicted) == before


def test_other_runs_have_no_cross_tuned_score(predicted: Path, tmp_path: Path) -> None:
    assert out_of_fold(tmp_path) == "it has no out-of-fold predictions"
    copy = Path(shutil.copytree(predicted, tmp_path / "copy", symlinks=True))
    (copy / "oof/predictions/manifest.json").write_text("{}")
    reason = out_of_fold(copy)
    assert isinstance(reason, str) and "manifest.json" in reason
