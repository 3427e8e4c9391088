"""Measures compared with their definitions, film by film, pair by pair and pixel by pixel."""

import math
import statistics

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from pneumo_dist.report.measures import (
    Measures,
    auprc,
    auroc,
    drawn_areas,
    false_positives,
    fold_average,
    image_scores,
    measure,
    ranked_estimates,
    touched_lesions,
)
from pneumo_dist.scoring.counts import triplet_counts
from pneumo_dist.scoring.histograms import Histograms, film_histograms
from pneumo_dist.scoring.masks import apply_triplet, image_score
from pneumo_dist.scoring.triplet import Triplet

TRIPLET = Triplet(0.7, 9, 0.4)
Maps = list[npt.NDArray[np.uint8]]


def measured(histograms: Histograms, names: npt.NDArray[np.str_]) -> Measures:
    return measure(triplet_counts(histograms, TRIPLET), image_scores(histograms, TRIPLET.area), names)


@pytest.fixture(scope="module")
def films() -> tuple[Maps, Maps, Histograms]:
    """Maps and labels of 40 films of 12 x 10 pixels, half of them positive, and their histograms."""
    random = np.random.default_rng(0)
    maps, labels = [], []
    for number in range(40):
        label = np.zeros((12, 10), np.uint8)
        if number % 2:
            label[2:5, 1 : 2 + number // 6] = 1
        quality = random.uniform(0, 200)
        maps.append(np.clip(label * quality + random.normal(90, 50, label.shape), 0, 255).astype(np.uint8))
        labels.append(label)
    pairs = zip(maps, labels, strict=True)
    return maps, labels, np.stack([film_histograms(p8, label) for p8, label in pairs])


@pytest.mark.parametrize("area", [1, 2, 7, 60, 119, 120, 121, 5000])
def test_image_score_equals_that_of_the_map(films: tuple[Maps, Maps, Histograms], area: int) -> None:
    maps, _, histograms = films
    assert image_scores(histograms, area).tolist() == [image_score(p8, area) for p8 in maps]


def test_without_an_area_films_are_ranked_by_their_largest_probability(films: tuple[Maps, Maps, Histograms]) -> None:
    maps, _, histograms = films
    assert image_scores(histograms, 0).tolist() == [p8.max() / 255 for p8 in maps]


def test_measures_equal_those_of_the_masks(films: tuple[Maps, Maps, Histograms]) -> None:
    maps, labels, histograms = films
    masks = [apply_triplet(p8, TRIPLET) for p8 in maps]
    positive = [bool(label.any()) for label in labels]
    found = measured(histograms, np.array([str(i) for i in range(40)]))
    called = [bool(mask.any()) for mask in masks]
    hits = [c for c, p in zip(called, positive, strict=True) if p]
    empties = [not c for c, p in zip(called, positive, strict=True) if not p]
    assert 0 < sum(hits) < 20 and 0 < sum(empties) < 20
    assert (found.films, found.positives, found.always_empty) == (40, 20, 0.5)
    assert (found.sensitivity.mean, found.specificity.mean) == (sum(hits) / 20, sum(empties) / 20)
    pairs = list(zip(called, positive, strict=True))
    assert vars(found.calls) == {
        "tp": pairs.count((True, True)),
        "fp": pairs.count((True, False)),
        "fn": pairs.count((False, True)),
        "tn": pairs.count((False, False)),
    }
    assert found.ppv.mean == pytest.approx(sum(hits) / sum(called), abs=1e-12)
    assert found.npv.mean == pytest.approx(sum(empties) / called.count(False), abs=1e-12)
    dices = []
    for mask, label in zip(masks, labels, strict=True):
        total = int(mask.sum()) + int(label.sum())
        dices.append(2 * int((mask & label).sum()) / total if total else 1.0)
    assert found.dice.mean == pytest.approx(np.mean(dices), abs=1e-12)
    assert found.positive_dice.mean == pytest.approx(np.mean(dices[1::2]), abs=1e-12)
    scores = [image_score(p8, TRIPLET.area) for p8 in maps]
    wins = [(p > n) + (p == n) / 2 for p in scores[1::2] for n in scores[0::2]]
    assert found.auroc.mean == pytest.approx(np.mean(wins), abs=1e-12)
    assert found.auprc.mean == pytest.approx(naive_average_precision(positive, scores), abs=1e-12)
    for each in (found.dice, found.sensitivity, found.ppv, found.npv, found.auroc, found.auprc):
        assert each.low < each.mean < each.high


def naive_average_precision(positive: list[bool], scores: list[float]) -> float:
    total = before = 0.0
    for threshold in sorted(set(scores), reverse=True):
        called = [p for p, score in zip(positive, scores, strict=True) if score >= threshold]
        recall = sum(called) / sum(positive)
        total += (recall - before) * sum(called) / len(called)
        before = recall
    return total


@pytest.mark.parametrize("kind", [0, 1])
def test_films_of_one_kind_have_no_ranking(films: tuple[Maps, Maps, Histograms], kind: int) -> None:
    own = films[2][kind::2]
    found = measured(own, np.array([str(i) for i in range(20)]))
    assert math.isnan(found.auroc.mean) and math.isnan(found.auprc.mean)
    assert math.isnan((found.specificity if kind else found.sensitivity).mean)
    assert not math.isnan((found.sensitivity if kind else found.specificity).mean)


def test_areas_of_draws_equal_those_of_the_repeated_films() -> None:
    random = np.random.default_rng(1)
    levels, positive = random.integers(0, 256, 50), random.random(50) < 0.4
    levels[:20] = 7 * (levels[:20] // 80)
    often = random.multinomial(50, np.full(50, 1 / 50), 30)
    counts = np.zeros((2, 30, 256))
    for draw in range(30):
        for film in range(50):
            counts[int(positive[film]), draw, levels[film]] += often[draw, film]
    found = drawn_areas(counts[1], counts[0])
    for draw in range(30):
        films = np.repeat(np.arange(50), often[draw])
        assert found[0, draw] == pytest.approx(auroc(positive[films], levels[films] / 255), abs=1e-12)
        assert found[1, draw] == pytest.approx(auprc(positive[films], levels[films] / 255), abs=1e-12)
    assert np.isnan(drawn_areas(counts[1], 0 * counts[0])).all()
    assert np.isnan(drawn_areas(0 * counts[1], counts[0])).all()


def test_interval_draws_groups_and_not_films() -> None:
    random = np.random.default_rng(1)
    positive = np.arange(100) % 2 == 0
    scores = np.clip(random.normal(100 + 40 * positive, 40), 0, 255).astype(np.int64) / 255
    repeated = np.repeat(positive, 5), np.repeat(scores, 5)
    apart = ranked_estimates(*repeated, np.array([str(i) for i in range(500)]))
    together = ranked_estimates(*repeated, np.repeat(np.array([str(i) for i in range(100)]), 5))
    assert apart == ranked_estimates(*repeated, np.array([str(i) for i in range(500)]))
    for narrow, wide in zip(apart, together, strict=True):
        assert narrow.low < narrow.mean == wide.mean < narrow.high
        assert wide.high - wide.low == pytest.approx((narrow.high - narrow.low) * math.sqrt(5), rel=0.2)
    alone = ranked_estimates(*repeated, np.repeat("one", 500))
    assert all(math.isnan(end) for each in alone for end in (each.low, each.high))


def test_false_positives_are_the_pixels_predicted_on_negative_films(films: tuple[Maps, Maps, Histograms]) -> None:
    maps, _, histograms = films
    pixels = [int(apply_triplet(p8, TRIPLET).sum()) for p8 in maps]
    assert triplet_counts(histograms, TRIPLET).predicted.tolist() == pixels
    negative = pixels[0::2]
    called = [count for count in negative if count]
    found = false_positives(triplet_counts(histograms, TRIPLET))
    assert (found.negatives, found.called) == (20, len(called))
    assert (found.mean, found.median) == (statistics.mean(negative), statistics.median(negative))
    assert (found.called_mean, found.called_median) == (statistics.mean(called), statistics.median(called))
    none = false_positives(triplet_counts(histograms[1::2], TRIPLET))
    assert (none.negatives, none.called) == (0, 0) and math.isnan(none.mean) and math.isnan(none.called_median)


def test_a_lesion_counts_as_touched_by_a_single_pixel() -> None:
    random = np.random.default_rng(2)
    for _ in range(20):
        truth, mask = ((random.random((20, 30)) < share).astype(np.uint8) for share in (0.12, 0.05))
        parts, count = ndimage.label(truth, np.ones((3, 3)))
        expected = [bool(mask[parts == part].any()) for part in range(1, count + 1)]
        assert 0 < sum(expected) < count
        # The two libraries number components differently.
        assert sorted(touched_lesions(truth, mask).tolist()) == sorted(expected)
    assert touched_lesions(np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)).tolist() == []


def test_average_over_folds_skips_folds_without_a_value(films: tuple[Maps, Maps, Histograms]) -> None:
    names = np.array([str(i) for i in range(20)])
    rows = [measured(part, names) for part in (films[2][:20], films[2][20:], films[2][0::2])]
    values = [rows[0].sensitivity.mean, rows[1].sensitivity.mean]
    assert fold_average(rows, "sensitivity") == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert fold_average(rows[:1], "dice")[0] == rows[0].dice.mean and math.isnan(fold_average(rows[:1], "dice")[1])
    assert math.isnan(fold_average(rows[2:], "sensitivity")[0])
