"""Thresholds from out-of-fold predictions: the exact best triplet on the label grid."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pneumo_dist.distributed import Ranks
from pneumo_dist.inference.postprocess import label_map
from pneumo_dist.inference.store import Predictions
from pneumo_dist.metrics import Histograms, Score, Triplet, best_triplet, film_histograms, score
from pneumo_dist.validation import gather_histograms
from shards import rle
from shards.errors import InputError
from shards.files import atomic_write

THRESHOLDS = "thresholds.json"


@dataclass(frozen=True)
class Tuned:
    """The best triplet and its scores over the films it was tuned on, and per fold."""

    triplet: Triplet
    score: Score
    folds: dict[int, Score]


def prediction_histograms(
    predictions: Predictions, ranks: Ranks, on_film: Callable[[], None] | None = None
) -> Histograms:
    """Return int64 (n, 2, 256) of labelled predictions in table order, the work dealt to the ranks.

    Raises InputError where a film has no label.
    """
    found = []
    for index in range(ranks.rank, len(predictions), ranks.world):
        text, grid = predictions.rows[index]["rle"], predictions.grid(index)
        if text is None:
            raise InputError(
                f"{predictions.folder}: {predictions.rows[index]['key']} has no label to tune on; use --split oof"
            )
        truth = rle.decode(text, grid.height, grid.width)
        histograms = film_histograms(label_map(predictions.p8(index), grid), truth)
        found.append(np.concatenate([[index], histograms.reshape(-1)]))
        if on_film:
            on_film()
    return gather_histograms(found, ranks)


def tune(predictions: Predictions, histograms: Histograms) -> Tuned:
    """Return the exact best triplet over every top and bottom level and every area."""
    triplet, _ = best_triplet(histograms)
    folds = np.array([-1 if row["fold"] is None else row["fold"] for row in predictions.rows])
    per_fold = {int(fold): score(histograms[folds == fold], triplet) for fold in np.unique(folds)}
    return Tuned(triplet, score(histograms, triplet), per_fold)


def write_thresholds(path: Path, tuned: Tuned, predictions: Predictions) -> None:
    """Write thresholds.json with the digest of the predictions that it was tuned on."""
    content = {
        "triplet": asdict(tuned.triplet),
        "score": _plain(tuned.score),
        "folds": {str(fold): _plain(s) for fold, s in tuned.folds.items()},
        "experiment": predictions.manifest["experiment"],
        "predictions_sha256": predictions.digest,
    }
    atomic_write(path, json.dumps(content, indent=1) + "\n")


def _plain(score: Score) -> dict[str, float | int | None]:
    """JSON has no nan: a mean over no films is null."""
    return {name: None if value != value else value for name, value in asdict(score).items()}


def read_triplet(path: Path) -> Triplet:
    """Return the triplet of a thresholds.json. Raises InputError where it is missing or damaged."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        triplet = Triplet(**content["triplet"])
        if not (0 <= triplet.top <= 1 and 0 <= triplet.bottom <= 1 and triplet.area >= 0):
            raise ValueError
        return triplet
    except FileNotFoundError:
        raise InputError(
            f"{path}: no thresholds; run 'python -m pneumo_dist tune' first, or give --triplet TOP AREA BOTTOM"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: not a thresholds file; run 'python -m pneumo_dist tune' again") from None
