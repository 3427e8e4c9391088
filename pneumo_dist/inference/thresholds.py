"""thresholds.json: what tuning found, written, read and told."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pneumo_dist.inference.postprocess import Rule
from pneumo_dist.inference.store import Predictions
from pneumo_dist.inference.tune import Alternative, Estimate, Tuned
from pneumo_dist.metrics import Score, Triplet
from shards.errors import InputError
from shards.files import atomic_write

THRESHOLDS, SURFACE, CURVE = "thresholds.json", "thresholds.png", "components.png"


def write_thresholds(path: Path, tuned: Tuned, predictions: Predictions) -> None:
    """Write thresholds.json with the digest of the predictions that it was tuned on."""
    rules = {
        "triplet": Alternative(Rule(tuned.triplet), tuned.score.dice, tuned.called),
        "components": tuned.components,
        "gate": tuned.gate,
    }
    content = {
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
        "rules": {name: asdict(value) for name, value in rules.items() if value is not None},
        "experiment": predictions.manifest["experiment"],
        "predictions_sha256": predictions.digest,
    }
    atomic_write(path, json.dumps(content, indent=1) + "\n")


def _plain(values: Score | Estimate) -> dict[str, float | int | None]:
    """JSON has no nan: a mean over no films is null."""
    return {name: None if value != value else value for name, value in asdict(values).items()}


def summary_lines(tuned: Tuned) -> list[str]:
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


def read_thresholds(path: Path, rule: str = "triplet") -> tuple[Rule, float]:
    """Return a rule of a thresholds.json and the share of out-of-fold films that it calls positive.

    Raises InputError where the file is missing or damaged, or has no such rule.
    """
    content = read_scores(path)
    try:
        if rule not in content["rules"]:
            needed = "a classification head" if rule == "gate" else "to be tuned"
            raise InputError(f"{path}: has no rule {rule}, which needs {needed}; it has {', '.join(content['rules'])}")
        found = content["rules"][rule]
        parts = found["rule"]
        triplet, called = Triplet(**parts["triplet"]), float(found["called"])
        chosen = Rule(triplet, int(parts["smallest_part"]), float(parts["gate"]))
        if not (0 <= triplet.top <= 1 and 0 <= triplet.bottom <= 1 and triplet.area >= 0):
            raise ValueError
        return chosen, called
    except InputError:
        raise
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: not a thresholds file; run 'python -m pneumo_dist tune' again") from None


def read_scores(path: Path) -> dict[str, Any]:
    """Return what thresholds.json says. Raises InputError where it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f"{path}: no thresholds; run 'python -m pneumo_dist tune' first, or give --triplet TOP AREA BOTTOM"
        ) from None
    except ValueError:
        raise InputError(f"{path}: not a thresholds file; run 'python -m pneumo_dist tune' again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a thresholds file; run 'python -m pneumo_dist tune' again")
    return content
