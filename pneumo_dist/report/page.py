"""Writes the report of an ensemble as one self-contained HTML page: scores, curves, subgroups and films."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from pneumo_dist.config.ensemble import EnsembleConfig
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.rules import RULES, RuleName
from pneumo_dist.predict.store import MANIFEST, Predictions, open_predictions
from pneumo_dist.report import plots
from pneumo_dist.report.inputs import (
    EvaluatedFilms,
    RunFigures,
    current_thresholds,
    environment,
    evaluate,
    experiments_of,
    read_history,
    run_figures,
    shard_rows,
    split_counts,
)
from pneumo_dist.report.measures import AVERAGED, fold_average, measure
from pneumo_dist.report.paired import Paired, differences
from pneumo_dist.report.splits import holdout_section, inline, out_of_fold_section, overlay_sheet
from pneumo_dist.report.subgroups import SMALLEST_CELL
from pneumo_dist.scoring.dice import Score
from pneumo_dist.thresholds.choose import choose_rule, in_words, own_triplet
from pneumo_dist.thresholds.rules import THRESHOLDS, ThresholdsFile, TunedRule
from pneumo_dist.thresholds.tune import prediction_histograms
from pneumo_dist.thresholds.worth import surface
from shards.dataset.table import Shards
from shards.errors import InputError
from shards.files import atomic_write

PAGE, OVERLAYS = "report.html", "overlays.png"
COLUMNS = ("view", "sex", "age")


@dataclass(frozen=True)
class ReportOptions:
    """Options of a report.

    Attributes:
        against: Another run to compare with, film by film.
        by: Columns of the sample table to score subgroups by.
        rule: Name of the tuned rule for masks. None uses the config's own rule.
        config: The config of the run. Without one, its own rule is the tuned triplet.
    """

    against: str | None = None
    by: Sequence[str] = COLUMNS
    rule: RuleName | None = None
    config: Experiment | EnsembleConfig | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether the thresholds are the config's own."""
        return own_triplet(self.config, self.rule) is not None


@dataclass(frozen=True)
class NetworkRow:
    """A network of the ensemble. `weight` is nan and `fold` is None if the predictions do not record them."""

    name: str
    weight: float
    fold: int | None


@dataclass(frozen=True)
class RuleRow:
    """A rule for masks in words, with its mean Dice and share of films called positive over the out-of-fold films."""

    title: str
    words: str
    dice: float
    called: float
    is_used: bool


@dataclass(frozen=True)
class WrittenReport:
    """The files of a report, and the figures that its command prints.

    `retuned` says why the rules were tuned for this report; None if they were not.
    """

    page: Path
    overlays: Path
    score: Score
    figures: RunFigures
    retuned: str | None


@dataclass(frozen=True)
class _EvaluatedRun:
    """The films of a run under the chosen rule. `tuned` is the tuned rule it is equal to, if any."""

    thresholds: ThresholdsFile
    retuned: str | None
    tuned: TunedRule | None
    out_of_fold: EvaluatedFilms
    held_out: EvaluatedFilms | None


def write_report(
    shards: Shards,
    runs: Path,
    name: str,
    options: ReportOptions | None = None,
    on_film: Callable[[], None] | None = None,
) -> WrittenReport:
    """Write report.html and overlays.png into RUNS/NAME, from its out-of-fold and, if present, holdout predictions.

    `on_film` is called for each film that was read.

    Raises:
        InputError: Predictions are missing or belong to other shards, a column is unknown, or a rule was not tuned.
    """
    chosen = options or ReportOptions()
    if chosen.against == name:
        raise InputError(f"--against {name}: is the ensemble of the report itself; name another one of {runs}")
    _check_columns(shards, chosen.by)
    predictions = open_predictions(runs / name / "oof" / "predictions")
    shard_rows(shards, predictions)
    rival_predictions = (
        None if chosen.against is None else open_predictions(runs / chosen.against / "oof" / "predictions")
    )
    run = _evaluate_run(predictions, chosen, on_film)
    rival = None
    if rival_predictions is not None:
        rival = _evaluate_run(rival_predictions, ReportOptions(rule=chosen.rule), on_film)
    histories = {each: read_history(runs / each) for each in experiments_of(predictions, runs, name)}
    content = {
        **_rival_content(run, rival),
        "name": name,
        "against": chosen.against,
        "rule_source": _source(run, chosen),
        "is_fixed": chosen.is_fixed,
        "counts": split_counts(shards),
        "manifest": shards.manifest["counts"],
        "smallest": SMALLEST_CELL,
        "curves": [
            (f"{each}, stage {stage}" if len(histories) > 1 else f"Stage {stage}", inline(plots.draw_curves(folds)))
            for each, stages in histories.items()
            for stage, folds in stages.items()
        ],
        **_films_content(shards, run, chosen.by),
        **_rules_content(run),
        **_provenance(predictions),
    }
    page, overlays = runs / name / PAGE, runs / name / OVERLAYS
    sheet, text = overlay_sheet(shards, run.out_of_fold), render(content)
    atomic_write(overlays, sheet)
    atomic_write(page, text)
    figures = run_figures(list(histories.values()))
    return WrittenReport(page, overlays, run.out_of_fold.counts.score(), figures, run.retuned)


def render(content: Mapping[str, Any]) -> str:
    """Return the page. Every text of `content` is escaped."""
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("pneumo_dist.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.tests["known"] = lambda value: value is not None and not math.isnan(value)
    return pages.get_template("page.html.j2").render(content)


def _check_columns(shards: Shards, by: Sequence[str]) -> None:
    for column in by:
        if column not in shards.table.schema.names:
            near = difflib.get_close_matches(column, shards.table.schema.names, n=1)
            hint = f"did you mean {near[0]}?" if near else "give one of " + ", ".join(shards.table.schema.names)
            raise InputError(f"--by {column}: the sample table of {shards.folder} has no such column; {hint}")


def _evaluate_run(
    predictions: Predictions, options: ReportOptions, on_film: Callable[[], None] | None
) -> _EvaluatedRun:
    """Evaluate the out-of-fold predictions of a run, and its holdout predictions if it has any."""
    histograms, thresholds, retuned = current_thresholds(predictions, on_film)
    rule, tuned = choose_rule(options.config, options.rule, lambda: thresholds)
    held_out, folder = None, predictions.folder.parents[1] / "holdout" / "predictions"
    if (folder / MANIFEST).exists():
        holdout = open_predictions(folder)
        held_out = evaluate(holdout, prediction_histograms(holdout, None, on_film), rule)
    return _EvaluatedRun(thresholds, retuned, tuned, evaluate(predictions, histograms, rule), held_out)


def _source(run: _EvaluatedRun, options: ReportOptions) -> str:
    if options.is_fixed:
        return "from the config, not tuned on any of these films"
    source = THRESHOLDS if run.retuned is None else f"tuned for this report, as {run.retuned}"
    return source if run.tuned is not None else f"{source}; the smallest component is from the config"


def _films_content(shards: Shards, run: _EvaluatedRun, by: Sequence[str]) -> dict[str, Any]:
    films = run.out_of_fold
    unseen = run.thresholds.unseen if run.tuned is not None and run.tuned.name == "triplet" else None
    splits = [out_of_fold_section(shards, films, by, unseen)]
    if run.held_out is not None:
        splits.insert(0, holdout_section(shards, run.held_out, by, films))
    groups = len(np.unique(films.groups))
    return {
        "splits": splits,
        "lead": splits[0],
        "is_held_out": run.held_out is not None,
        "folds": _fold_rows(films),
        "ranking": _ranking(run),
        "groups": groups,
        "grouped": groups < len(films),
    }


def _rules_content(run: _EvaluatedRun) -> dict[str, Any]:
    thresholds, films = run.thresholds, run.out_of_fold
    rows = [
        RuleRow(RULES[tuned.name], in_words(tuned.rule), tuned.dice, tuned.called, tuned == run.tuned)
        for tuned in thresholds.rules.values()
    ]
    if run.tuned is None:
        dice, called = float(films.counts.dice.mean()), float(films.counts.called.mean())
        rows.insert(0, RuleRow("from the config", in_words(films.rule), dice, called, True))
    # The components rule has no triplet to mark on a map of triplets, so the tuned triplet is marked.
    is_triplet = run.tuned is None or run.tuned.name != "components"
    triplet = films.rule.triplet if is_triplet else thresholds.triplet
    weights = thresholds.objective.film_weights(films.counts.positive)
    curve, components = thresholds.curve, thresholds.rules.get("components")
    return {
        "rule": in_words(films.rule),
        "rules": rows,
        "objective": thresholds.objective,
        "surface": inline(plots.draw_surface(surface(films.histograms, triplet, weights), triplet)),
        "components_plot": inline(plots.draw_curve(curve, components.rule)) if curve and components else None,
    }


def _rival_content(run: _EvaluatedRun, rival: _EvaluatedRun | None) -> dict[str, Any]:
    if rival is None:
        return {"differences": [], "rival_rule": None}
    rows: list[Paired] = differences("out of fold", run.out_of_fold, rival.out_of_fold)
    if run.held_out is not None and rival.held_out is not None:
        rows += differences("holdout", run.held_out, rival.held_out)
    return {"differences": rows, "rival_rule": in_words(rival.out_of_fold.rule)}


def _fold_rows(films: EvaluatedFilms) -> dict[str, Any]:
    rows = {}
    for fold in np.unique(films.folds).tolist():
        is_in = films.folds == fold
        name = f"fold {fold}" if fold >= 0 else "no fold"
        rows[name] = measure(films.counts.select(is_in), films.scores[is_in], films.groups[is_in])
    averages = {name: fold_average(list(rows.values()), name) for name in AVERAGED} if len(rows) > 1 else None
    return {"rows": list(rows.items()), "averages": averages}


def _ranking(run: _EvaluatedRun) -> str | None:
    named = {"holdout": run.held_out, "out of fold": run.out_of_fold}
    curves = {
        title: (films.counts.positive, films.scores)
        for title, films in named.items()
        if films is not None and 0 < films.counts.positive.sum() < len(films)
    }
    return inline(plots.draw_ranking(curves)) if curves else None


def _provenance(predictions: Predictions) -> dict[str, Any]:
    """Return the networks and settings of the predictions, and the versions behind the figures."""
    manifest = predictions.manifest
    parts = manifest.get("parts") or [{"name": name} for name in manifest.get("members", [])]
    networks = [NetworkRow(str(part["name"]), float(part.get("weight", math.nan)), part.get("fold")) for part in parts]
    settings: dict[str, Any] = {}
    for key in ("stage", "image_size", "hflip", "tta"):
        value = manifest.get(key)
        settings |= value if isinstance(value, dict) else {} if value is None else {key: value}
    predicted = ", ".join(f"{key} {_setting(value)}" for key, value in settings.items())
    return {"networks": networks, "predicted": predicted, "environment": environment(predictions)}


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)
