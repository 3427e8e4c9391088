"""thresholds.json: what tuning found, written, read and told."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pneumo_dist.predict.store import Predictions
from pneumo_dist.scoring.dice import Score
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.thresholds.content import FORMAT_VERSION, RULES, ScoresModel, ThresholdsModel, VersionModel
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.refine import SizeCurve
from pneumo_dist.thresholds.tune import Estimate, TunedRule, TuningResult
from shards.errors import InputError
from shards.files import write_json
from shards.stored import read_json

THRESHOLDS, SURFACE, CURVE = "thresholds.json", "thresholds.png", "components.png"
# Points of the curve that are kept: every size of ten thousand films' parts would make megabytes.
CURVE_POINTS = 200


@dataclass(frozen=True)
class ThresholdsFile:
    """What thresholds.json keeps for other commands.

    `rules` are those of RULES that there was something to tune on, `unseen` is the mean Dice with the triplets of the
    other folds, None where none could be tuned, `curve` that by the size of the smallest part, thinned, and `digest`
    that of the predictions.
    """

    objective: Objective
    rules: Mapping[str, TunedRule]
    unseen: Estimate | None
    curve: SizeCurve | None
    digest: str
    source: Path

    def rule(self, name: str) -> TunedRule:
        """Return a rule by its name. Raises InputError where it was not tuned."""
        if name not in self.rules:
            needed = "a classification head" if name == "gate" else "to be tuned"
            raise InputError(f"{self.source}: has no rule {name}, which needs {needed}; it has {', '.join(self.rules)}")
        return self.rules[name]


def rules_of(tuned: TuningResult, predictions: Predictions, source: Path) -> ThresholdsFile:
    """Return the part of a tuning that thresholds.json keeps for other commands."""
    found = {
        "triplet": TunedRule(Rule(tuned.triplet), tuned.score.dice, tuned.called),
        "components": tuned.components,
        "gate": tuned.gate,
    }
    rules = {name: value for name, value in found.items() if value is not None}
    curve = None
    if tuned.curve is not None and tuned.components is not None:
        curve = tuned.curve.thinned(CURVE_POINTS, tuned.components.rule.smallest_part)
    return ThresholdsFile(tuned.objective, rules, tuned.unseen, curve, predictions.digest, source)


def write_thresholds(path: Path, tuned: TuningResult, predictions: Predictions) -> None:
    """Write thresholds.json with the digest of the predictions that it was tuned on."""
    kept = rules_of(tuned, predictions, path)
    content = {
        "format_version": FORMAT_VERSION,
        "objective": str(tuned.objective),
        "triplet": asdict(tuned.triplet),
        "score": _plain(tuned.score),
        "folds": {str(fold): _plain(s) for fold, s in tuned.folds.items()},
        "dice": _plain(tuned.dice),
        "dice_tuned_on_other_folds": None if tuned.unseen is None else _plain(tuned.unseen),
        "called_positive": tuned.called,
        "positives_given_up_by_area": tuned.given_up,
        "plateau": tuned.plateau,
        "by_size": [asdict(row) for row in tuned.by_size],
        "patients": tuned.patients,
        "rules": {name: asdict(value) for name, value in kept.rules.items()},
        "experiment": predictions.manifest.get("experiment"),
        "predictions_sha256": kept.digest,
        "components_curve": None
        if kept.curve is None
        else {"sizes": kept.curve.sizes.tolist(), "dice": kept.curve.dice.tolist()},
    }
    write_json(path, content)


def _plain(values: Score | Estimate) -> dict[str, float | int | None]:
    """JSON has no nan: a mean over no films is null."""
    return {name: None if value != value else value for name, value in asdict(values).items()}


def _number(value: float | None) -> float:
    """JSON has no nan: null stands for it."""
    return math.nan if value is None else float(value)


def summary_lines(tuned: TuningResult) -> list[str]:
    """Return what a person wants to read of it."""
    triplet, result = tuned.triplet, tuned.score
    # Rounded up, so that the printed numbers, typed after --triplet, mean the same levels.
    top, bottom = (math.ceil(value * 1e4) / 1e4 for value in (triplet.top, triplet.bottom))
    lines = [
        f"best triplet for {tuned.objective}: top {top:.4f}, area {triplet.area} px, bottom {bottom:.4f}",
        f"out-of-fold mean Dice {result.dice:.4f} over {result.films} films (always empty {result.always_empty:.4f}), "
        f"Dice on {result.positives} positive films {result.positive_dice:.4f}",
        f"95 % interval {tuned.dice.low:.4f} to {tuned.dice.high:.4f}, too good as these films chose the thresholds",
    ]
    if tuned.unseen is not None:
        low, high = tuned.unseen.low, tuned.unseen.high
        lines.append(f"with thresholds of the other folds {tuned.unseen.mean:.4f}, 95 % {low:.4f} to {high:.4f}")
    else:
        lines.append(f"no score with thresholds of the other folds: {tuned.no_unseen}")
    drawn = "patients" if tuned.patients < result.films else "films, each a patient of its own or of none known"
    lines.append(f"intervals draw from {tuned.patients} {drawn}")
    lines.append(f"called positive: {tuned.called:.1%}; area gives up {tuned.given_up} positive films")
    if tuned.components is not None:
        rule, dice = tuned.components.rule, tuned.components.dice
        lines.append(
            f"threshold {rule.triplet.top:g} without parts below {rule.smallest_part} px: mean Dice {dice:.4f}"
        )
    if tuned.gate is not None:
        lines.append(f"triplet with a class probability above {tuned.gate.rule.gate:.4f}: {tuned.gate.dice:.4f}")
    return lines + [
        f"masks of {row.smallest} to {row.largest} px: {row.films} films, sensitivity {row.sensitivity:.2f}, "
        f"Dice {row.dice:.2f}"
        for row in tuned.by_size
    ]


def read_rules(path: Path) -> ThresholdsFile:
    """Return what a thresholds.json keeps for other commands. Raises InputError where it is missing or damaged."""
    content = ThresholdsModel.model_validate_json(json.dumps(_read(path, ThresholdsModel)))
    unseen, curve = content.dice_tuned_on_other_folds, content.components_curve
    return ThresholdsFile(
        objective=Objective.parse(content.objective),
        rules={name: content.rules[name].alternative() for name in RULES if name in content.rules},
        unseen=None if unseen is None else Estimate(*map(_number, (unseen.mean, unseen.low, unseen.high))),
        curve=None if curve is None else SizeCurve(np.array(curve.sizes, np.int64), np.array(curve.dice, np.float64)),
        digest=content.predictions_sha256,
        source=path,
    )


def read_scores(path: Path) -> dict[str, Any]:
    """Return all that thresholds.json says. Raises InputError where it is missing or damaged."""
    return _read(path, ScoresModel)


def _read(path: Path, model: type[ThresholdsModel]) -> dict[str, Any]:
    mend, kind = "run 'python -m pneumo_dist tune' again", f"not a thresholds file of format version {FORMAT_VERSION}"
    try:
        if read_json(path, VersionModel, mend, kind).get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
            raise InputError(f"{path}: {kind}; {mend}")
        return read_json(path, model, mend, kind)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no thresholds; run 'python -m pneumo_dist tune' first, or give --triplet TOP AREA BOTTOM"
        ) from None
