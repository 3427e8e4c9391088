"""The comparison of runs as lines for a terminal, as CSV and as one HTML page."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from pneumo_dist.report.compare import ComparedRun
from pneumo_dist.report.compare_rules import ComparedRule
from pneumo_dist.report.paired import Paired
from pneumo_dist.report.templates import templates
from pneumo_dist.thresholds.worth import Estimate
from shards.console import printable
from shards.spreadsheet import csv_text

NOTHING = "–"
TITLES = ("run", "films", "score", "cross-tuned", "positives", "holdout", "best epoch", "hours", "films/s")
DIFFERENCES = ("difference", "on positives", "on holdout")
# One column for each figure, with its unit in docs/report.md.
CSV_COLUMNS = (
    *("run", "films", "positive_films", "score", "cross_tuned", "cross_tuned_low", "cross_tuned_high"),
    *("positive_dice", "holdout", "holdout_low", "holdout_high", "best_epoch", "hours", "images_per_s"),
    *("difference", "difference_low", "difference_high", "difference_p"),
    *("positive_difference", "positive_difference_low", "positive_difference_high", "positive_difference_p"),
    *("holdout_difference", "holdout_difference_low", "holdout_difference_high", "holdout_difference_p"),
    "notes",
)


@dataclass(frozen=True)
class Cells:
    """A row of the table in words; `notes` are sentences below it."""

    name: str
    figures: tuple[str, ...]
    differences: tuple[str, ...]
    notes: tuple[str, ...]


def cells(runs: Sequence[ComparedRun]) -> list[Cells]:
    """Return the rows of the table in words."""
    return [
        Cells(
            run.name,
            (
                NOTHING if run.films is None else str(run.films),
                _number(run.score),
                _interval(run.unseen),
                _number(run.positive_dice),
                _interval(run.holdout),
                _number(run.best_epoch),
                _number(run.hours, 2),
                _number(run.images_per_s, 1),
            ),
            tuple(map(_difference, _paired(run))),
            run.notes,
        )
        for run in runs
    ]


def lines(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the lines for a terminal: figures, differences if there are any, and notes."""
    found = cells(runs)
    notes = [f"{printable(each.name)}: {printable(note)}" for each in found for note in each.notes]
    compared = [each for each in found if set(each.differences) != {NOTHING}]
    figures = _table([TITLES, *((each.name, *each.figures) for each in found)])
    differences = _table([("run", *DIFFERENCES), *((each.name, *each.differences) for each in compared)])
    return [*figures, *(["", *differences] if compared else []), *(["", *notes] if notes else [])]


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    shown = [tuple(map(printable, row)) for row in rows]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]


def as_csv(runs: Sequence[ComparedRun]) -> str:
    """Return the comparison as CSV with unrounded figures. A figure that is missing is an empty cell."""
    rows = [
        (
            *(run.name, run.films, run.positives, run.score, *_parts(run.unseen), run.positive_dice),
            *(*_parts(run.holdout), run.best_epoch, run.hours, run.images_per_s),
            *(value for each in _paired(run) for value in _paired_parts(each)),
            "; ".join(run.notes),
        )
        for run in runs
    ]
    return csv_text([CSV_COLUMNS, *([_cell(value) for value in row] for row in rows)])


def as_html(runs: Sequence[ComparedRun], rule: ComparedRule = "triplet") -> str:
    """Return the comparison under a rule as one HTML page. Every text is escaped."""
    words = "triplet" if rule == "triplet" else "rule with a stacked gate"
    content = {"rows": cells(runs), "titles": TITLES, "differences": DIFFERENCES, "rule": words}
    return templates().get_template("compare.html.j2").render(content)


def _paired(run: ComparedRun) -> tuple[Paired | None, Paired | None, Paired | None]:
    return run.differences.films, run.differences.positives, run.differences.holdout


def _number(value: float | None, digits: int = 4) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _interval(value: Estimate | None) -> str:
    if value is None:
        return NOTHING
    return _number(value.mean) if math.isnan(value.low) else f"{value.mean:.4f} ({value.low:.4f} to {value.high:.4f})"


def _difference(value: Paired | None) -> str:
    if value is None:
        return NOTHING
    estimate = value.difference
    interval = "" if math.isnan(estimate.low) else f" ({estimate.low:+.4f} to {estimate.high:+.4f})"
    return f"{estimate.mean:+.4f}{interval}"


def _parts(value: Estimate | None) -> tuple[float | None, ...]:
    return (None, None, None) if value is None else astuple(value)


def _paired_parts(value: Paired | None) -> tuple[float | None, ...]:
    return (None,) * 4 if value is None else (*astuple(value.difference), value.p)


def _cell(value: str | float | None) -> str | float:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
