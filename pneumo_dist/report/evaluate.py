"""Evaluates stored predictions under a rule for masks, and reads each film once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pneumo_dist.maps.store import Predictions, check_gate
from pneumo_dist.report.boundaries import boundary_scores
from pneumo_dist.report.measures import image_scores, touched_lesions
from pneumo_dist.scoring.arrays import Counts, Flags, Names
from pneumo_dist.scoring.counts import PixelCounts, triplet_counts
from pneumo_dist.scoring.histograms import Histograms, film_histograms
from pneumo_dist.scoring.masks import Rule, apply_rule, label_map, rule_score
from pneumo_dist.scoring.spacing import is_plausible
from pneumo_dist.scoring.threads import in_order
from pneumo_dist.thresholds.worth import Estimate, estimate
from shards.arrays import Floats
from shards.dataset import rle
from shards.dataset.table import Shards
from shards.errors import InputError


@dataclass(frozen=True)
class EvaluatedFilms:
    """Labelled predictions under a rule. Arrays are in the order of the predictions.

    Attributes:
        predictions: The predictions.
        histograms: Their histograms, int64 (n, 2, 256).
        rule: The rule for masks.
        counts: Pixel counts under the rule.
        scores: Image scores, float64 (n,); the probabilities of the rule's stacked gate if it has one.
        spacing: Distances of rows and of columns on the label grid in mm, float64 (n, 2); nan where not known.
        hd95: HD95 in mm, float64 (n,); nan unless the film is positive, called, and of known spacing.
        nsd: The normalised surface distance at 2 mm of the same films, float64 (n,).
        lesions: Number of 8-connected components of the labels.
        lesion_sensitivity: Share of these lesions that a mask touches by at least one pixel.
    """

    predictions: Predictions
    histograms: Histograms
    rule: Rule
    counts: PixelCounts
    scores: Floats
    spacing: Floats
    hd95: Floats
    nsd: Floats
    lesions: int
    lesion_sensitivity: Estimate

    @property
    def folds(self) -> Counts:
        return self.predictions.folds

    @property
    def groups(self) -> Names:
        return self.predictions.groups

    @property
    def pixel_cm2(self) -> Floats:
        """The area of a label-grid pixel in cm², float64 (n,); nan where the spacing is not known."""
        return np.asarray(self.spacing.prod(1) / 100)

    def __len__(self) -> int:
        return len(self.counts)


@dataclass(frozen=True)
class _Film:
    """What one film's map and label give.

    `score` is that of the rule's stacked gate, nan without one. `lesions` are flags of the touched ones. Distances that
    are not measured are nan.
    """

    histogram: Histograms
    predicted: int
    hits: int
    score: float
    lesions: Flags
    hd95: float
    nsd: float


def shard_rows(shards: Shards, predictions: Predictions) -> Counts:
    """Return the row of each predicted film in the shards, int64 (n,). Raises InputError if a film is missing."""
    row_of = {str(key): number for number, key in enumerate(shards.column("key"))}
    missing = [row["key"] for row in predictions.rows if row["key"] not in row_of]
    if missing:
        raise InputError(
            f"{shards.folder}: has no film {missing[0]} of {predictions.folder} ({len(missing)} missing in all); give "
            "the shards that were predicted"
        )
    return np.array([row_of[row["key"]] for row in predictions.rows], np.int64)


def label_spacing(shards: Shards, predictions: Predictions) -> Floats:
    """Return the distances of rows and of columns on each film's label grid in mm, float64 (n, 2); nan if not known.

    A spacing counts as known if the label grid is then as wide as a chest film; else it is that of another grid.
    """
    rows = shard_rows(shards, predictions)
    spacing = np.stack([shards.column(f"spacing_{side}")[rows].astype(np.float64) for side in ("row", "column")], 1)
    widths = [film["label_width"] for film in predictions.rows]
    is_known = [is_plausible(columns, each) for columns, each in zip(widths, spacing[:, 1].tolist(), strict=True)]
    return np.where(np.array(is_known)[:, None] & np.isfinite(spacing).all(1, keepdims=True), spacing, np.nan)


def evaluate(
    predictions: Predictions,
    rule: Rule,
    histograms: Histograms | None = None,
    spacing: Floats | None = None,
    on_film: Callable[[], None] | None = None,
    threads: int | None = None,
) -> EvaluatedFilms:
    """Evaluate labelled predictions under a rule.

    Masks are only made for films with lesions to count, and for films that may lose small components. A stacked gate
    reads every film. The result does not depend on `threads`, by default one for each CPU.

    Args:
        predictions: The predictions.
        rule: The rule for masks.
        histograms: Their histograms, int64 (n, 2, 256), if they are known. Only films that need a mask are read then.
        spacing: Their spacings as `label_spacing` returns them; None for not known.
        on_film: Called for each film, unless the histograms are given.
        threads: Number of threads.

    Raises:
        InputError: A film has no label, or the rule needs class probabilities that the predictions do not have.
    """
    check_gate(predictions, rule)
    mm = np.full((len(predictions), 2), np.nan) if spacing is None else spacing
    films = list(_films(predictions, rule, histograms, mm, on_film, threads))
    if histograms is None:
        histograms = np.stack([film.histogram for film in films]).astype(np.int64)
    lesions = np.concatenate([film.lesions for film in films])
    owners = np.repeat(predictions.groups, [len(film.lesions) for film in films])
    return EvaluatedFilms(
        predictions=predictions,
        histograms=histograms,
        rule=rule,
        counts=PixelCounts(
            np.array([film.predicted for film in films], np.int64),
            np.array([film.hits for film in films], np.int64),
            histograms[:, 1].sum(-1),
        ),
        scores=(
            image_scores(histograms, rule.triplet.area)
            if rule.stacking is None
            else np.array([film.score for film in films])
        ),
        spacing=mm,
        hd95=np.array([film.hd95 for film in films]),
        nsd=np.array([film.nsd for film in films]),
        lesions=len(lesions),
        lesion_sensitivity=estimate(lesions.astype(np.float64), owners),
    )


def _films(
    predictions: Predictions,
    rule: Rule,
    histograms: Histograms | None,
    spacing: Floats,
    on_film: Callable[[], None] | None,
    threads: int | None,
) -> Iterator[_Film]:
    """Yield what each film gives, in order."""

    def measured(index: int) -> _Film:
        return _measured(predictions, index, rule, None if histograms is None else histograms[index], spacing[index])

    for film in in_order(measured, range(len(predictions)), threads):
        if on_film is not None and histograms is None:
            on_film()
        yield film


def _measured(predictions: Predictions, index: int, rule: Rule, histogram: Histograms | None, spacing: Floats) -> _Film:
    row = predictions.rows[index]
    if row["rle"] is None:
        raise InputError(f"{predictions.folder}: {row['key']} has no label to score; use --split oof")
    film = truth = None
    if histogram is None:
        film = label_map(predictions.p8(index), predictions.grid(index))
        truth = None if row["rle"] == rle.EMPTY else predictions.label(index)
        histogram = film_histograms(film, truth).astype(np.int32)
    counts = triplet_counts(histogram[None], rule.triplet)
    is_closed = rule.gate > 0 and row["class_probability"] <= rule.gate
    score = np.nan
    if rule.stacking is not None:
        film = label_map(predictions.p8(index), predictions.grid(index)) if film is None else film
        score = rule_score(film, rule, row["class_probability"])
        is_closed = is_closed or score <= rule.stacking.threshold
    predicted, hits = (0, 0) if is_closed else (int(counts.predicted[0]), int(counts.hits[0]))
    is_positive = bool(counts.positive[0])
    lesions, hd95, nsd = np.zeros(0, np.bool_), np.nan, np.nan
    if is_positive or (predicted and rule.smallest_part > 1):
        film = label_map(predictions.p8(index), predictions.grid(index)) if film is None else film
        mask = apply_rule(film, rule, row["class_probability"])
        predicted = int(np.count_nonzero(mask))
        if is_positive:
            truth = predictions.label(index) if truth is None else truth
            hits, lesions = int(np.count_nonzero(mask & truth)), touched_lesions(truth, mask)
            if predicted and np.isfinite(spacing).all():
                hd95, nsd = boundary_scores(truth, mask, spacing)
    return _Film(histogram, predicted, hits, score, lesions, hd95, nsd)
