"""The values of the report's page: sections of films, rules, comparisons and versions."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pneumo_dist.config.rules import RULES
from pneumo_dist.maps.store import Predictions
from pneumo_dist.report import plots
from pneumo_dist.report.columns import Columns
from pneumo_dist.report.evaluate import EvaluatedFilms
from pneumo_dist.report.inputs import environment
from pneumo_dist.report.measures import AVERAGED, count_calls, fold_average, measure
from pneumo_dist.report.paired import Paired, differences
from pneumo_dist.report.splits import holdout_section, inline, out_of_fold_section
from pneumo_dist.report.words import rule_sentences
from pneumo_dist.thresholds.choose import in_words
from pneumo_dist.thresholds.rules import ThresholdsFile, TunedRule
from pneumo_dist.thresholds.worth import Estimate, surface
from shards.dataset.table import Shards


@dataclass(frozen=True)
class NetworkRow:
    """A network of the ensemble. `weight` is nan and `fold` is None if the predictions do not record them."""

    name: str
    weight: float
    fold: int | None


@dataclass(frozen=True)
class RuleRow:
    """A rule for masks in words, with its mean Dice and share of films called positive over the out-of-fold films.

    `unseen` is the mean Dice under rules of this name that were tuned on the other folds, nan if it is not known.
    """

    title: str
    words: str
    dice: float
    called: float
    is_used: bool
    unseen: float = math.nan


@dataclass(frozen=True)
class EvaluatedRun:
    """The films of a run under the chosen rule. `tuned` is the tuned rule it is equal to, if any."""

    thresholds: ThresholdsFile
    retuned: str | None
    tuned: TunedRule | None
    out_of_fold: EvaluatedFilms
    held_out: EvaluatedFilms | None


def films_content(shards: Shards, run: EvaluatedRun, by: Columns) -> dict[str, Any]:
    films = run.out_of_fold
    unseen = None if run.tuned is None else _unseen(run.thresholds, run.tuned)
    splits = [out_of_fold_section(shards, films, by, unseen)]
    if run.held_out is not None:
        splits.insert(0, holdout_section(shards, run.held_out, by, films))
    groups = len(np.unique(films.groups))
    pixel = films.pixel_cm2[np.isfinite(films.pixel_cm2)]
    return {
        "rule_sentences": rule_sentences(films.rule, float(np.median(pixel)) if len(pixel) else math.nan),
        "splits": splits,
        "lead": splits[0],
        "is_held_out": run.held_out is not None,
        "folds": _fold_rows(films),
        "ranking": _ranking(run),
        "groups": groups,
        "grouped": groups < len(films),
    }


def rules_content(run: EvaluatedRun) -> dict[str, Any]:
    thresholds, films = run.thresholds, run.out_of_fold
    rows = [
        RuleRow(
            RULES[tuned.name],
            in_words(tuned.rule),
            tuned.dice,
            tuned.called,
            tuned == run.tuned,
            math.nan if (unseen := _unseen(thresholds, tuned)) is None else unseen.mean,
        )
        for tuned in thresholds.rules.values()
    ]
    if run.tuned is None:
        dice, called = float(films.counts.dice.mean()), float(films.counts.called.mean())
        rows.insert(0, RuleRow("from the config", in_words(films.rule), dice, called, True))
    # Rules of one threshold have no triplet to mark on a map of triplets, so the tuned triplet is marked.
    is_triplet = run.tuned is None or run.tuned.name not in ("components", "threshold-components", "stacking")
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


def _unseen(thresholds: ThresholdsFile, tuned: TunedRule) -> Estimate | None:
    """Return the mean Dice under rules of this name from the other folds."""
    return thresholds.unseen if tuned.name == "triplet" else tuned.unseen


def rival_content(run: EvaluatedRun, rival: EvaluatedRun | None) -> dict[str, Any]:
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


def _ranking(run: EvaluatedRun) -> str | None:
    named = {"holdout": run.held_out, "out of fold": run.out_of_fold}
    curves = {}
    for title, films in named.items():
        if films is None or not 0 < films.counts.positive.sum() < len(films):
            continue
        calls = count_calls(films.counts)
        called = calls.tp + calls.fp
        curves[title] = plots.Ranking(
            positive=films.counts.positive,
            scores=films.scores,
            sensitivity=calls.tp / (calls.tp + calls.fn),
            specificity=calls.tn / (calls.tn + calls.fp),
            ppv=calls.tp / called if called else math.nan,
        )
    return inline(plots.draw_ranking(curves)) if curves else None


def provenance(predictions: Predictions) -> dict[str, Any]:
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
