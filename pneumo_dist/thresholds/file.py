"""thresholds.json: writes, reads and summarizes the result of a tuning."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pneumo_dist.config.rules import RULES, RuleName
from pneumo_dist.maps.store import Predictions
from pneumo_dist.scoring.dice import Score
from pneumo_dist.scoring.stored import rule_content
from pneumo_dist.thresholds.content import FORMAT_VERSION, EstimateModel, ScoresModel, ThresholdsModel, VersionModel
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.refine import SizeCurve
from pneumo_dist.thresholds.rules import ThresholdsFile, TunedRule
from pneumo_dist.thresholds.tune import TuningResult
from pneumo_dist.thresholds.worth import Estimate
from shards.errors import InputError
from shards.files import write_json
from shards.stored import read_json

SURFACE, CURVE = "thresholds.png", "components.png"
_JOINT: tuple[RuleName, ...] = ("threshold-components", "triplet-components")


def write_thresholds(path: Path, result: TuningResult, predictions: Predictions) -> None:
    """Write thresholds.json, with the digest of the predictions that it was tuned on."""
    thresholds, curve = result.thresholds, result.thresholds.curve
    content = {
        "format_version": FORMAT_VERSION,
        "objective": str(thresholds.objective),
        "triplet": asdict(thresholds.triplet),
        "score": _plain(result.score),
        "folds": {str(fold): _plain(score) for fold, score in result.folds.items()},
        "dice": _plain(result.dice),
        "dice_tuned_on_other_folds": None if thresholds.unseen is None else _plain(thresholds.unseen),
        "called_positive": thresholds.rules["triplet"].called,
        "positives_given_up_by_area": result.given_up,
        "plateau": result.plateau,
        "by_size": [asdict(row) for row in result.by_size],
        "patients": result.patients,
        "rules": {tuned.name: _rule_content(tuned) for tuned in thresholds.rules.values()},
        "experiment": predictions.manifest.get("experiment"),
        "predictions_sha256": thresholds.digest,
        "components_curve": None if curve is None else {"sizes": curve.sizes.tolist(), "dice": curve.dice.tolist()},
    }
    write_json(path, content)


def _rule_content(tuned: TunedRule) -> dict[str, Any]:
    content = {"rule": rule_content(tuned.rule), "dice": tuned.dice, "called": tuned.called}
    return content if tuned.unseen is None else {**content, "dice_tuned_on_other_folds": _plain(tuned.unseen)}


def _plain(values: Score | Estimate) -> dict[str, float | int | None]:
    """Return the fields with null for nan, which JSON does not have."""
    return {name: None if value != value else value for name, value in asdict(values).items()}


def _number(value: float | None) -> float:
    """Return a number of the file, with nan for null."""
    return math.nan if value is None else float(value)


def _estimate(stored: EstimateModel | None) -> Estimate | None:
    return None if stored is None else Estimate(*map(_number, (stored.mean, stored.low, stored.high)))


def summary_lines(result: TuningResult) -> list[str]:
    """Return the lines that tune prints."""
    thresholds, score = result.thresholds, result.score
    triplet, unseen = thresholds.triplet, thresholds.unseen
    # Rounded up, so that the printed numbers, passed to --triplet, mean the same levels.
    top, bottom = (math.ceil(value * 1e4) / 1e4 for value in (triplet.top, triplet.bottom))
    lines = [
        f"best triplet for {thresholds.objective}: top {top:.4f}, area {triplet.area} px, bottom {bottom:.4f}",
        f"out-of-fold mean Dice {score.dice:.4f} over {score.films} films (always empty {score.always_empty:.4f}), "
        f"Dice on {score.positives} positive films {score.positive_dice:.4f}",
        f"95 % interval {result.dice.low:.4f} to {result.dice.high:.4f}, optimistic: these films chose the thresholds",
    ]
    if unseen is not None:
        lines.append(
            f"with thresholds of the other folds {unseen.mean:.4f}, 95 % {unseen.low:.4f} to {unseen.high:.4f}"
        )
    else:
        lines.append(f"no score with thresholds of the other folds: {result.no_unseen}")
    drawn = "patients" if result.patients < score.films else "films; patients are unknown or have one film each"
    lines.append(f"intervals draw from {result.patients} {drawn}")
    called = thresholds.rules["triplet"].called
    lines.append(f"called positive: {called:.1%}; area gives up {result.given_up} positive films")
    if (tuned := thresholds.rules.get("components")) is not None:
        lines.append(
            f"threshold {tuned.rule.triplet.top:g} without components below {tuned.rule.smallest_part} px: "
            f"mean Dice {tuned.dice:.4f}"
        )
    lines += [_joint_line(tuned) for name, tuned in thresholds.rules.items() if name in _JOINT]
    if (tuned := thresholds.rules.get("gate")) is not None:
        lines.append(f"triplet with a class probability above {tuned.rule.gate:.4f}: mean Dice {tuned.dice:.4f}")
    if (tuned := thresholds.rules.get("stacking")) is not None:
        lines.append(_stacking_line(tuned))
    return lines + [
        f"masks of {row.smallest} to {row.largest} px: {row.films} films, sensitivity {row.sensitivity:.2f}, "
        f"Dice {row.dice:.2f}"
        for row in result.by_size
    ]


def _joint_line(tuned: TunedRule) -> str:
    triplet, smallest = tuned.rule.triplet, tuned.rule.smallest_part
    line = f"{RULES[tuned.name]}: top {triplet.top:.4f}, area {triplet.area} px, bottom {triplet.bottom:.4f}, "
    line += f"components from {smallest} px: mean Dice {tuned.dice:.4f}"
    return line + _with_other_folds(tuned, "thresholds")


def _stacking_line(tuned: TunedRule) -> str:
    rule = tuned.rule
    assert rule.stacking is not None
    line = f"stacked gate above {rule.stacking.threshold:.4f}, mask above {rule.triplet.bottom:.4f}: "
    line += f"mean Dice {tuned.dice:.4f}"
    return line + _with_other_folds(tuned, "gate and thresholds")


def _with_other_folds(tuned: TunedRule, what: str) -> str:
    """Return the score of a rule that was tuned on the other folds, to append to a line; empty without one."""
    if tuned.unseen is None:
        return ""
    mean, low, high = tuned.unseen.mean, tuned.unseen.low, tuned.unseen.high
    return f", with {what} of the other folds {mean:.4f}, 95 % {low:.4f} to {high:.4f}"


def read_thresholds(path: Path) -> ThresholdsFile:
    """Read the part of thresholds.json that other commands use. Raises InputError if it is missing or damaged."""
    content = ThresholdsModel.model_validate_json(json.dumps(_read(path, ThresholdsModel)))
    curve = content.components_curve
    stored = {name: content.rules[name] for name in RULES if name in content.rules}
    return ThresholdsFile(
        objective=Objective.parse(content.objective),
        rules={
            name: TunedRule(
                name, tuned.rule.rule(), tuned.dice, tuned.called, _estimate(tuned.dice_tuned_on_other_folds)
            )
            for name, tuned in stored.items()
        },
        unseen=_estimate(content.dice_tuned_on_other_folds),
        curve=None if curve is None else SizeCurve(np.array(curve.sizes, np.int64), np.array(curve.dice, np.float64)),
        digest=content.predictions_sha256,
        path=path,
    )


def read_scores(path: Path) -> dict[str, Any]:
    """Return the whole content of thresholds.json. Raises InputError if it is missing or damaged."""
    return _read(path, ScoresModel)


def _read(path: Path, model: type[ThresholdsModel]) -> dict[str, Any]:
    fix, kind = "run 'python -m pneumo_dist tune' again", f"not a thresholds file of format version {FORMAT_VERSION}"
    try:
        if read_json(path, VersionModel, fix, kind).get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
            raise InputError(f"{path}: {kind}; {fix}")
        return read_json(path, model, fix, kind)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no thresholds; run 'python -m pneumo_dist tune' first, or give --triplet TOP AREA BOTTOM"
        ) from None
