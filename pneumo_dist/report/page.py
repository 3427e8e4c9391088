"""Writes the report of a run: one self-contained HTML page, a contact sheet of films, and the list of all films."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from pneumo_dist.config.ensemble import EnsembleConfig
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.rules import RuleName
from pneumo_dist.maps.outside import with_outside
from pneumo_dist.maps.store import MANIFEST, Predictions, open_predictions
from pneumo_dist.report import plots
from pneumo_dist.report.columns import subgroup_columns
from pneumo_dist.report.content import EvaluatedRun, films_content, provenance, rival_content, rules_content
from pneumo_dist.report.evaluate import evaluate, label_spacing, shard_rows
from pneumo_dist.report.film_list import film_list
from pneumo_dist.report.inputs import (
    RunFigures,
    current_thresholds,
    experiments_of,
    read_history,
    run_figures,
    split_counts,
)
from pneumo_dist.report.splits import inline, overlay_sheet
from pneumo_dist.report.subgroups import SMALLEST_CELL, split_by
from pneumo_dist.report.templates import templates
from pneumo_dist.scoring.dice import Score
from pneumo_dist.thresholds.choose import choose_rule, own_triplet
from pneumo_dist.thresholds.rules import THRESHOLDS
from shards import palette
from shards.dataset.table import Shards
from shards.errors import InputError
from shards.files import atomic_write

PAGE, OVERLAYS, FILMS = "report.html", "overlays.png", "films.csv"
COLUMNS = ("view", "sex", "age")


@dataclass(frozen=True)
class ReportOptions:
    """Options of a report.

    Attributes:
        against: Another run to compare with, film by film.
        by: Columns of the sample table to score subgroups by.
        table: CSV file with a column image_id, whose other columns are subgroups, too.
        rule: Name of the tuned rule for masks. None uses the config's own rule.
        config: The config of the run. Without one, its own rule is the tuned triplet.
        day: The date on the page.
        classes: CSV file with class probabilities of the out-of-fold and holdout films, instead of the networks' own.
    """

    against: str | None = None
    by: Sequence[str] = COLUMNS
    table: Path | None = None
    rule: RuleName | None = None
    config: Experiment | EnsembleConfig | None = None
    day: date = field(default_factory=date.today)
    classes: Path | None = None

    @property
    def tuned_rule(self) -> RuleName | None:
        """Name of the tuned rule, if the user or the config names one."""
        return self.rule or (self.config.rule if isinstance(self.config, EnsembleConfig) else None)

    @property
    def is_fixed(self) -> bool:
        """Whether the thresholds are the config's own."""
        return own_triplet(self.config, self.rule) is not None


@dataclass(frozen=True)
class WrittenReport:
    """The files of a report, and the figures that its command prints.

    `retuned` says why the rules were tuned for this report; None if they were not.
    """

    page: Path
    overlays: Path
    films: Path
    score: Score
    figures: RunFigures
    retuned: str | None


def write_report(
    shards: Shards,
    runs: Path,
    name: str,
    options: ReportOptions | None = None,
    on_film: Callable[[], None] | None = None,
) -> WrittenReport:
    """Write report.html, overlays.png and films.csv into RUNS/NAME, from its out-of-fold and holdout predictions.

    There may be no holdout predictions. `on_film` is called for each film that was read.

    Raises:
        InputError: Predictions are missing or belong to other shards, a column is unknown, or a rule was not tuned.
    """
    chosen = options or ReportOptions()
    if chosen.against == name:
        raise InputError(f"--against {name}: is the ensemble of the report itself; name another one of {runs}")
    columns = subgroup_columns(shards, chosen.by, chosen.table)
    for column, values in columns.items():
        split_by(column, values)  # refuses a column before any film is read
    predictions = open_predictions(runs / name / "oof" / "predictions")
    shard_rows(shards, predictions)
    rival_predictions = (
        None if chosen.against is None else open_predictions(runs / chosen.against / "oof" / "predictions")
    )
    run = _evaluate_run(predictions, chosen, on_film, shards)
    rival = None
    if rival_predictions is not None:
        rival = _evaluate_run(rival_predictions, ReportOptions(rule=chosen.tuned_rule), on_film)
    histories = {each: read_history(runs / each) for each in experiments_of(predictions, runs, name)}
    content = {
        **rival_content(run, rival),
        "name": name,
        "day": chosen.day.isoformat(),
        "dataset": shards.folder.resolve().name,
        "films_file": FILMS,
        "overlays_file": OVERLAYS,
        "against": chosen.against,
        "rule_source": _source(run, chosen),
        "is_fixed": chosen.is_fixed,
        "counts": split_counts(shards),
        "manifest": shards.manifest["counts"],
        "is_pseudonymised": bool(shards.manifest["arguments"].get("pseudonymise")),
        "smallest": SMALLEST_CELL,
        "curves": [
            (f"{each}, stage {stage}" if len(histories) > 1 else f"Stage {stage}", inline(plots.draw_curves(folds)))
            for each, stages in histories.items()
            for stage, folds in stages.items()
        ],
        **films_content(shards, run, columns),
        **rules_content(run),
        **provenance(predictions),
    }
    folder = runs / name
    sheet, text = overlay_sheet(shards, run.out_of_fold), render(content)
    listed = film_list({"out of fold": run.out_of_fold, **({} if run.held_out is None else {"holdout": run.held_out})})
    atomic_write(folder / OVERLAYS, sheet)
    atomic_write(folder / FILMS, listed)
    atomic_write(folder / PAGE, text)
    figures, score = run_figures(list(histories.values())), run.out_of_fold.counts.score()
    return WrittenReport(folder / PAGE, folder / OVERLAYS, folder / FILMS, score, figures, run.retuned)


def render(content: Mapping[str, Any]) -> str:
    """Return the page. Every text of `content` is escaped."""
    pages = templates()
    pages.tests["known"] = lambda value: value is not None and not math.isnan(value)
    colours = {
        "label_colour": palette.css(palette.LABEL_TEXT),
        "prediction_colour": palette.css(palette.PREDICTION_TEXT),
    }
    return pages.get_template("page.html.j2").render({**content, **colours})


def _evaluate_run(
    predictions: Predictions,
    options: ReportOptions,
    on_film: Callable[[], None] | None,
    shards: Shards | None = None,
) -> EvaluatedRun:
    """Evaluate the out-of-fold predictions of a run, and its holdout predictions if it has any.

    With the shards, distances are measured on films with a known pixel spacing.
    """
    folder = predictions.folder.parents[1] / "holdout" / "predictions"
    holdout = open_predictions(folder) if (folder / MANIFEST).exists() else None
    if options.classes is not None:
        read = with_outside(options.classes, [predictions, *([] if holdout is None else [holdout])])
        predictions, holdout = read[0], None if holdout is None else read[1]
    spacing, held_spacing = (
        None if shards is None or each is None else label_spacing(shards, each) for each in (predictions, holdout)
    )
    histograms, thresholds, retuned = current_thresholds(predictions, on_film)
    rule, tuned = choose_rule(options.config, options.rule, lambda: thresholds)
    held_out = None if holdout is None else evaluate(holdout, rule, None, held_spacing, on_film)
    out_of_fold = evaluate(predictions, rule, histograms, spacing, on_film)
    return EvaluatedRun(thresholds, retuned, tuned, out_of_fold, held_out)


def _source(run: EvaluatedRun, options: ReportOptions) -> str:
    if options.is_fixed:
        return "from the config, not tuned on any of these films"
    source = THRESHOLDS if run.retuned is None else f"tuned for this report, as {run.retuned}"
    return source if run.tuned is not None else f"{source}; the smallest component is from the config"
