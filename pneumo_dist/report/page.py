"""What an ensemble came to, on one self-contained HTML page: scores, curves, subgroups and films."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from pneumo_dist.predict.store import MANIFEST, Predictions, open_predictions
from pneumo_dist.report import plots
from pneumo_dist.report.inputs import (
    EvaluatedFilms,
    FilmHistograms,
    RunFigures,
    environment,
    experiments_of,
    judge,
    read_history,
    run_figures,
    score_films,
    score_with_rules,
    shard_rows,
    split_counts,
)
from pneumo_dist.report.measures import AVERAGED, fold_average, measure
from pneumo_dist.report.paired import Paired, differences
from pneumo_dist.report.splits import holdout_part, inline, out_of_fold_part, overlay_sheet
from pneumo_dist.report.subgroups import SMALLEST_CELL
from pneumo_dist.scoring.dice import Score
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.thresholds.choose import RuleRequest, in_words
from pneumo_dist.thresholds.file import THRESHOLDS, ThresholdsFile
from pneumo_dist.thresholds.worth import surface
from shards.dataset.table import Shards
from shards.errors import InputError
from shards.files import atomic_write

PAGE, OVERLAYS = "report.html", "overlays.png"
COLUMNS = ("view", "sex", "age")
RULE_TITLES = {
    "triplet": "triplet",
    "components": "fixed threshold without small parts",
    "gate": "triplet with the classification gate",
}


@dataclass(frozen=True)
class ReportSection:
    """A checkpoint that the predictions are a mean of; `weight` is nan and `fold` None where they are not noted."""

    name: str
    weight: float
    fold: int | None


@dataclass(frozen=True)
class RuleRow:
    """A rule for masks, what it says, and over the out-of-fold films its mean Dice and the share called positive."""

    title: str
    words: str
    dice: float
    called: float
    is_taken: bool


@dataclass(frozen=True)
class Written:
    """The files of a report, and what its command prints: figures of the out-of-fold films and of training.

    `retuned` says why the rules were tuned anew, None where they were not.
    """

    page: Path
    overlays: Path
    score: Score
    figures: RunFigures
    retuned: str | None


@dataclass(frozen=True)
class _Run:
    """A run's films under the rule that was picked, which is the tuned rule `name` or, where that is None, another."""

    scored: FilmHistograms
    tuned: ThresholdsFile
    retuned: str | None
    rule: Rule
    name: str | None
    out_of_fold: EvaluatedFilms
    held_out: EvaluatedFilms | None


def write_report(
    shards: Shards,
    runs: Path,
    name: str,
    against: str | None = None,
    by: Sequence[str] = COLUMNS,
    wanted: RuleRequest | None = None,
    on_film: Callable[[], None] | None = None,
) -> Written:
    """Write report.html and overlays.png below RUNS/NAME, for its out-of-fold and, where there, holdout predictions.

    `against` names another run for paired differences, `by` columns of the sample table, `wanted` the rule for masks
    (the tuned triplet unless given). `on_film` is called for each film that was scored. Raises InputError for missing
    predictions, other shards, an unknown column and a rule that was not tuned.
    """
    if against == name:
        raise InputError(f"--against {against}: is the ensemble of the report itself; name another one of {runs}")
    _check_columns(shards, by)
    asked = wanted or RuleRequest()
    predictions = open_predictions(runs / name / "oof" / "predictions")
    shard_rows(shards, predictions)
    other = None if against is None else open_predictions(runs / against / "oof" / "predictions")
    run = _judged(runs / name, predictions, asked, on_film)
    compared: list[Paired] = []
    rival: _Run | None = None
    if other is not None and against is not None:
        rival = _judged(runs / against, other, RuleRequest(asked.name), on_film)
        compared = differences("out of fold", run.out_of_fold, rival.out_of_fold)
        if run.held_out is not None and rival.held_out is not None:
            compared += differences("holdout", run.held_out, rival.held_out)
    histories = {each: read_history(runs / each) for each in experiments_of(predictions, runs, name)}
    figures = run_figures(list(histories.values()))
    unseen = run.tuned.unseen if run.name == "triplet" else None
    parts = [out_of_fold_part(shards, run.out_of_fold, by, unseen)]
    if run.held_out is not None:
        parts.insert(0, holdout_part(shards, run.held_out, by, run.out_of_fold))
    groups = run.out_of_fold.groups
    content = {
        "name": name,
        "against": against,
        "parts": parts,
        "lead": parts[0],
        "is_held_out": run.held_out is not None,
        "rule": in_words(run.rule),
        "rival_rule": None if rival is None else in_words(rival.rule),
        "rule_source": _source(run, asked),
        "is_fixed": asked.is_fixed,
        "rules": _rule_rows(run),
        "objective": run.tuned.objective,
        "surface": _surface(run),
        "components_plot": _components_plot(run.tuned),
        "folds": _fold_rows(run.out_of_fold),
        "curves": [
            (f"{each}, stage {stage}" if len(histories) > 1 else f"Stage {stage}", inline(plots.draw_curves(folds)))
            for each, stages in histories.items()
            for stage, folds in stages.items()
        ],
        "ranking": _ranking(run),
        "networks": _networks(predictions),
        "predicted": _how_predicted(predictions),
        "differences": compared,
        "counts": split_counts(shards),
        "manifest": shards.manifest["counts"],
        "environment": environment(predictions),
        "smallest": SMALLEST_CELL,
        "grouped": len(np.unique(groups)) < len(groups),
        "groups": len(np.unique(groups)),
    }
    page, overlays = runs / name / PAGE, runs / name / OVERLAYS
    sheet, text = overlay_sheet(shards, run.out_of_fold), render(content)
    atomic_write(overlays, sheet)
    atomic_write(page, text)
    return Written(page, overlays, run.out_of_fold.counts.score(), figures, run.retuned)


def render(content: Mapping[str, Any]) -> str:
    """Return the page; every text of `content` is escaped."""
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


def _judged(run: Path, predictions: Predictions, wanted: RuleRequest, on_film: Callable[[], None] | None) -> _Run:
    scored, tuned, retuned = score_with_rules(predictions, on_film)
    picked = wanted.pick(lambda: tuned)
    rule = picked.rule
    folder = run / "holdout" / "predictions"
    is_held_out = (folder / MANIFEST).exists()
    held_out = judge(score_films(open_predictions(folder), on_film), rule) if is_held_out else None
    return _Run(scored, tuned, retuned, rule, picked.name, judge(scored, rule), held_out)


def _source(run: _Run, wanted: RuleRequest) -> str:
    if wanted.is_fixed:
        return "the config's own, tuned on none of these films"
    tuned = THRESHOLDS if run.retuned is None else f"tuned for this report, as {run.retuned}"
    return tuned if run.name else f"{tuned}; the smallest part is the config's own"


def _rule_rows(run: _Run) -> list[RuleRow]:
    """Return every tuned rule, and first the one that was taken where it is none of these."""
    rows = [
        RuleRow(RULE_TITLES[name], in_words(found.rule), found.dice, found.called, name == run.name)
        for name, found in run.tuned.rules.items()
    ]
    if run.name is None:
        counts = run.out_of_fold.counts
        own = RuleRow(
            "the config's own", in_words(run.rule), float(counts.dice.mean()), float(counts.called.mean()), True
        )
        rows.insert(0, own)
    return rows


def _surface(run: _Run) -> str:
    # A rule by parts has no triplet to mark on a map of triplets: the tuned one stands in.
    triplet = run.rule.triplet if run.name != "components" else run.tuned.rule("triplet").rule.triplet
    weights = run.tuned.objective.film_weights(run.out_of_fold.counts.positive)
    return inline(plots.draw_surface(surface(run.scored.histograms, triplet, weights), triplet))


def _components_plot(tuned: ThresholdsFile) -> str | None:
    if tuned.curve is None or "components" not in tuned.rules:
        return None
    return inline(plots.draw_curve(tuned.curve, tuned.rules["components"].rule))


def _fold_rows(judged: EvaluatedFilms) -> dict[str, Any]:
    folds = np.unique(judged.folds)
    own = [judged.folds == fold for fold in folds]
    found = [measure(judged.counts.part(films), judged.scores[films], judged.groups[films]) for films in own]
    names = [f"fold {fold}" if fold >= 0 else "no fold" for fold in folds.tolist()]
    averages = {name: fold_average(found, name) for name in AVERAGED} if len(found) > 1 else None
    return {"rows": list(zip(names, found, strict=True)), "averages": averages}


def _ranking(run: _Run) -> str | None:
    named = {"holdout": run.held_out, "out of fold": run.out_of_fold}
    curves = {
        title: (films.counts.positive, films.scores)
        for title, films in named.items()
        if films is not None and 0 < films.counts.positive.sum() < len(films)
    }
    return inline(plots.draw_ranking(curves)) if curves else None


def _networks(predictions: Predictions) -> list[ReportSection]:
    manifest = predictions.manifest
    parts = manifest.get("parts") or [{"name": name} for name in manifest.get("members", [])]
    return [ReportSection(str(part["name"]), float(part.get("weight", math.nan)), part.get("fold")) for part in parts]


def _how_predicted(predictions: Predictions) -> str:
    """Return the manifest's settings in words: `image_size 512, hflip yes, scales 1.0`."""
    found: dict[str, Any] = {}
    for key in ("stage", "image_size", "hflip", "tta"):
        value = predictions.manifest.get(key)
        found |= value if isinstance(value, dict) else {} if value is None else {key: value}
    return ", ".join(f"{key} {_in_words(value)}" for key, value in found.items())


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)
