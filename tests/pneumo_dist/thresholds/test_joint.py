"""The joint searches, compared with trying every rule in fractions: equal rules, ties included."""

import math
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pneumo_dist.scoring.arrays import Flags, Map
from pneumo_dist.scoring.histograms import film_histograms
from pneumo_dist.scoring.masks import Rule, apply_rule
from pneumo_dist.scoring.triplet import Triplet, best_triplet
from pneumo_dist.thresholds import joint
from pneumo_dist.thresholds.joint import JointSearch, best_threshold
from pneumo_dist.thresholds.levels import FilmLevels, film_levels
from pneumo_dist.thresholds.steps import Gains, PartSteps

Film = tuple[Map, Map]
# Every mask of such a film is that of one of these levels, and each is the lowest of its kind.
LEVELS = (0, 40, 153, 255)
# Between the levels of films with more of them.
STEP = 15
shapes = st.tuples(st.integers(1, 4), st.integers(1, 5))
films = shapes.flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.uint8, shape, elements=st.sampled_from(LEVELS), fill=st.nothing()),
        hnp.arrays(np.uint8, shape, elements=st.integers(0, 1), fill=st.nothing()) | st.just(np.zeros(shape, np.uint8)),
    )
)
weighted = st.lists(st.tuples(films, st.sampled_from([1, 1, 1, 2, 3])), min_size=1, max_size=4)


def naive_dice(film: Film, rule: Rule) -> Fraction:
    mask, truth = apply_rule(film[0], rule), film[1]
    total = int(mask.sum()) + int(truth.sum())
    return Fraction(2 * int((mask & truth).sum()), total) if total else Fraction(1)


def steps_of(chosen: list[tuple[Film, int]]) -> PartSteps:
    return PartSteps([film_levels(*film) for film, _ in chosen], np.array([float(w) for _, w in chosen]))


def most(chosen: list[tuple[Film, int]]) -> int:
    """The pixels above 0 of the film that has most of them."""
    return max(int((film > 0).sum()) for (film, _), _ in chosen)


def mean(chosen: list[tuple[Film, int]], rule: Rule) -> Fraction:
    return sum((weight * naive_dice(film, rule) for film, weight in chosen), Fraction(0)) / sum(w for _, w in chosen)


def first_best(chosen: list[tuple[Film, int]], rules: list[Rule]) -> tuple[Rule, Fraction]:
    values = [mean(chosen, rule) for rule in rules]
    return rules[values.index(max(values))], max(values)


def sizes_of(chosen: list[tuple[Film, int]]) -> list[int]:
    return [0, *range(2, most(chosen) + 2)]


@settings(max_examples=40, deadline=None)
@given(weighted)
def test_threshold_and_size_are_the_first_of_the_best(chosen: list[tuple[Film, int]]) -> None:
    rules = [Rule(Triplet(b / 255, 0, b / 255), size) for size, b in product(sizes_of(chosen), LEVELS)]
    rule, value = first_best(chosen, rules)
    found, dice = best_threshold(steps_of(chosen))
    assert found == rule
    assert dice == pytest.approx(float(value), abs=1e-11)


@settings(max_examples=25, deadline=None)
@given(weighted, st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_threshold_for_a_specificity_calls_as_many_as_allowed(
    chosen: list[tuple[Film, int]], specificity: float
) -> None:
    ranked: list[tuple[Any, ...]] = []
    for size, bottom in product(sizes_of(chosen), LEVELS):
        rule = Rule(Triplet(bottom / 255, 0, bottom / 255), size)
        called = [(bool(truth.any()), bool(apply_rule(film, rule).any())) for (film, truth), _ in chosen]
        wrong, negatives = called.count((False, True)), sum(not positive for positive, _ in called)
        if wrong <= (1 - specificity) * negatives + 1e-9:
            ranked.append((-called.count((True, True)), -mean(chosen, rule), size, bottom, rule))
    assert best_threshold(steps_of(chosen), specificity)[0] == min(ranked, key=lambda each: each[:4])[-1]


def triplets(chosen: list[tuple[Film, int]], sizes: list[int]) -> list[Rule]:
    areas = range(most(chosen) + 1, -1, -1)
    return [
        Rule(Triplet(top / 255, area, bottom / 255), size)
        for size, top, area, bottom in product(sizes, LEVELS[:-1], areas, LEVELS)
    ]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(films, st.sampled_from([1, 1, 2])), min_size=1, max_size=3))
def test_triplet_and_size_are_the_first_of_the_best(chosen: list[tuple[Film, int]]) -> None:
    rule, value = first_best(chosen, triplets(chosen, sizes_of(chosen)))
    found, dice = JointSearch(steps_of(chosen), threads=1).best()
    assert mean(chosen, found) == value
    assert found == rule
    assert dice == pytest.approx(float(value), abs=1e-11)


def random_films(count: int, seed: int) -> list[tuple[Film, int]]:
    """Films of rough clouds of many levels, which have components of many sizes; every other one has a label."""
    chance = np.random.default_rng(seed)
    chosen: list[tuple[Film, int]] = []
    for number in range(count):
        film = (STEP * np.rint(255 / STEP * chance.beta(0.6, 1.5, (9, 9)))).astype(np.uint8)
        truth = np.zeros((9, 9), np.uint8)
        if number % 2:
            row, column = chance.integers(0, 5, 2)
            truth[row : row + 4, column : column + 3] = 1
            film = np.where(truth & (chance.random((9, 9)) < 0.8), np.maximum(film, 8 * STEP), film).astype(np.uint8)
        chosen.append(((film, truth), 1))
    return chosen


def naive_triplet(chosen: list[tuple[Film, int]]) -> float:
    """The best mean Dice over every size, with the triplet search on masks without small components."""
    best = 0.0
    for size in range(0, 30):
        for bottom in range(0, 256, STEP):
            masks = [apply_rule(film, Rule(Triplet(bottom / 255, 0, bottom / 255), size)) for (film, _), _ in chosen]
            shown = [_dice(mask, truth) for mask, ((_, truth), _) in zip(masks, chosen, strict=True)]
            hidden = [float(not truth.any()) for (_, truth), _ in chosen]
            gain = np.array(shown) - hidden
            for top in range(0, 255, STEP):
                counts = np.array([(film > top).sum() for (film, _), _ in chosen])
                order = np.argsort(-counts, kind="stable")
                ends = np.flatnonzero(np.append(np.diff(counts[order]) != 0, True))
                best = max(best, (sum(hidden) + max(0.0, gain[order].cumsum()[ends].max())) / len(chosen))
    return best


def _dice(mask: Map, truth: Map) -> float:
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / total if total else 1.0


def test_bounds_leave_out_no_better_rule_among_all_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = random_films(6, seed=3)
    search = JointSearch(steps_of(chosen), threads=1)
    looked: list[int] = []
    bound = search._bound

    def counted(smallest: int, largest: int, pairs: Flags) -> Gains:
        looked.append(int(pairs.sum()))
        return bound(smallest, largest, pairs)

    monkeypatch.setattr(search, "_bound", counted)
    rule, dice = search.best()
    assert dice == pytest.approx(naive_triplet(chosen), abs=1e-11)
    assert float(mean(chosen, rule)) == pytest.approx(dice, abs=1e-11) and rule.smallest_part > 1
    assert sum(looked) < 0.5 * len(steps_of(chosen).sizes) * 255 * 256, "most pairs were left out"


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_rule(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    steps = steps_of(random_films(20, seed=5))
    expected = JointSearch(steps, threads=1).best()
    monkeypatch.setattr(joint, "_WORTH_THREADS", 0)
    assert JointSearch(steps, threads).best() == expected


def test_films_without_components_have_the_best_triplet() -> None:
    chosen = [
        ((np.full((3, 3), value, np.uint8), truth), 1)
        for value, truth in ((200, np.ones((3, 3), np.uint8)), (120, np.zeros((3, 3), np.uint8)))
    ]
    rule, dice = JointSearch(steps_of(chosen), threads=1).best()
    histograms = np.stack([film_histograms(*film) for film, _ in chosen])
    assert (rule, dice) == (Rule(best_triplet(histograms)[0]), 1.0)


def test_best_threshold_separates_what_the_triplet_cannot() -> None:
    film = np.zeros((4, 6), np.uint8)
    film[:, :2], film[0, 5] = 90, 255
    truth = np.zeros((4, 6), np.uint8)
    truth[:, :2] = 1
    alone = [((film, truth), 1)]
    assert best_threshold(steps_of(alone)) == (Rule(Triplet(0.0, 0, 0.0), 2), 1.0)
    assert JointSearch(steps_of(alone), threads=1).best() == (Rule(Triplet(0.0, 9, 0.0), 2), 1.0)


def test_sums_of_a_thousand_films_stay_exact() -> None:
    """A third of a film is no sum of powers of two: the mean over films may not drift."""
    sizes, hits = np.full(1, 1, np.int32), np.full(1, 1, np.int32)
    starts = np.array([0] + [1] * 256, np.int32)
    above = np.array([1] + [0] * 255, np.int32)
    thirds = [FilmLevels(above, above, starts, sizes, hits, 5) for _ in range(1000)]
    rule, dice = best_threshold(PartSteps(thirds, np.ones(1000)))
    assert rule == Rule(Triplet(0.0, 0, 0.0)) and math.isclose(dice, 1 / 3, abs_tol=1e-12)
