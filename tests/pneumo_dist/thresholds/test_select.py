"""The greedy selection, compared with a plain one that keeps nothing, and with picks that must win."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from candidate_runs import candidate
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pneumo_dist.maps.store import Predictions
from pneumo_dist.scoring.arrays import Flags, Map
from pneumo_dist.scoring.histograms import film_histograms
from pneumo_dist.scoring.masks import Rule, apply_rule, label_map
from pneumo_dist.scoring.triplet import Triplet, best_triplet
from pneumo_dist.thresholds import blends
from pneumo_dist.thresholds.blends import blend_histograms, mixed, reduced
from pneumo_dist.thresholds.select import Selection, select
from shards.dataset.table import Shards

STEPS = 4


@pytest.fixture(scope="module")
def library(films: Shards, tmp_path_factory: pytest.TempPathFactory) -> list[Predictions]:
    """Candidates of different faults, whose blend is better than each: moved to either side, and noisy."""
    runs = tmp_path_factory.mktemp("runs")
    return [
        candidate(films, runs / "left", shift=-3, noise=40),
        candidate(films, runs / "noisy", specks=0.004, noise=60, wrong=25),
        candidate(films, runs / "right", shift=3, noise=40),
    ]


@pytest.fixture(scope="module")
def selection(library: list[Predictions]) -> Selection:
    return select(library, STEPS)


def mean_map(library: list[Predictions], picks: list[int], index: int) -> Map:
    repeated = [library[number].p8(index) for number, count in enumerate(picks) for _ in range(count)]
    return np.asarray(np.floor(np.mean(np.stack(repeated).astype(np.float64), axis=0) + 0.5), np.uint8)


def score(library: list[Predictions], picks: list[int], films: Flags) -> tuple[float, Triplet]:
    first = library[0]
    rows = [
        film_histograms(
            label_map(mean_map(library, picks, int(index)), first.grid(int(index))), first.label(int(index))
        )
        for index in np.flatnonzero(films)
    ]
    triplet, dice = best_triplet(np.stack(rows), threads=1)
    return dice, triplet


def plain_selection(library: list[Predictions], films: Flags) -> tuple[list[int], float, Triplet]:
    """Forward selection with replacement, from the mean of the maps themselves."""
    picks, best = [0] * len(library), (-1.0, [0] * len(library), Triplet(0, 0, 0))
    for _ in range(STEPS):
        tried = [[count + (number == added) for number, count in enumerate(picks)] for added in range(len(library))]
        scores = [score(library, each, films) for each in tried]
        chosen = max(range(len(tried)), key=lambda number: (round(scores[number][0], 11), -number))
        picks = tried[chosen]
        if scores[chosen][0] > best[0] + 1e-12:
            best = (scores[chosen][0], picks, scores[chosen][1])
    return best[1], best[0], best[2]


def test_picks_are_those_of_a_plain_selection(library: list[Predictions], selection: Selection) -> None:
    folds = library[0].folds
    picks, dice, triplet = plain_selection(library, np.ones(len(folds), np.bool_))
    assert selection.whole.picks == reduced(tuple(picks)) and selection.whole.dice == dice
    assert selection.whole.triplet == triplet
    assert sum(count > 0 for count in selection.whole.picks) > 1, "a blend is better"
    assert selection.whole.dice > max(selection.alone) + 0.01
    for fold in (0, 1):
        picks, dice, triplet = plain_selection(library, folds != fold)
        found = selection.folds[fold]
        assert (found.picks, found.dice, found.triplet) == (reduced(tuple(picks)), dice, triplet)


def test_each_fold_is_scored_by_what_the_others_selected(library: list[Predictions], selection: Selection) -> None:
    first = library[0]
    assert selection.unseen is not None and selection.single is not None and selection.equal is not None
    for index, fold in enumerate(first.folds.tolist()):
        others = first.folds != fold
        singles = [[int(number == only) for number in range(3)] for only in range(3)]
        values = [round(score(library, each, others)[0], 11) for each in singles]
        for picks, found in (
            (list(selection.folds[fold].picks), selection.unseen),
            (singles[values.index(max(values))], selection.single),
            ([1, 1, 1], selection.equal),
        ):
            triplet = score(library, picks, others)[1]
            mask = apply_rule(label_map(mean_map(library, picks, index), first.grid(index)), Rule(triplet))
            truth = first.label(index)
            total = int(mask.sum()) + int(truth.sum())
            assert found[index] == (2 * int((mask & truth).sum()) / total if total else 1.0)


def test_labels_of_a_fold_do_not_change_what_the_others_select(
    library: list[Predictions], selection: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = library[0]
    label = Predictions.label

    def turned(predictions: Predictions, index: int) -> Map:
        truth = label(predictions, index)
        return truth[::-1].copy() if first.folds[index] == 0 else truth

    monkeypatch.setattr(Predictions, "label", turned)
    changed = select(library, STEPS)
    assert changed.folds[0].picks == selection.folds[0].picks
    assert changed.folds[0].triplet == selection.folds[0].triplet and changed.folds[0].dice == selection.folds[0].dice
    assert changed.whole.dice != selection.whole.dice, "the labels matter"


def test_equal_candidates_are_picked_by_their_order(library: list[Predictions]) -> None:
    found = select([library[0], library[0], library[0]], 3)
    assert found.whole.picks == (1, 0, 0) and {each.picks for each in found.folds.values()} == {(1, 0, 0)}
    assert found.alone[0] == found.alone[1] == found.alone[2] == found.whole.dice


def test_one_fold_has_no_score_of_unseen_films(films: Shards, tmp_path: Path) -> None:
    rows = np.flatnonzero(films.column("fold") == 0).tolist()
    found = select(
        [candidate(films, tmp_path / name, rows=rows, noise=noise) for name, noise in (("a", 9), ("b", 40))], 2
    )
    assert found.unseen is found.single is found.equal is None and not found.folds and found.whole.dice > 0


@pytest.mark.parametrize("threads", [1, 3])
def test_memory_and_threads_do_not_change_the_selection(
    library: list[Predictions], selection: Selection, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(blends, "_MOST_BYTES", 1)
    found = select(library, STEPS, threads=threads)
    assert found.whole.picks == selection.whole.picks and found.whole.dice == selection.whole.dice
    assert found.unseen is not None and selection.unseen is not None
    assert np.array_equal(found.unseen, selection.unseen) and found.alone == selection.alone


@given(
    st.lists(hnp.arrays(np.uint8, (3, 3)), min_size=1, max_size=4),
    st.lists(st.lists(st.sampled_from([0, 1, 2, 3, 7, 125, 250]), min_size=4, max_size=4), min_size=1, max_size=3),
)
def test_mean_is_that_of_repeated_maps(maps: list[Map], drawn: list[list[int]]) -> None:
    chosen = [[max(picks[0], 1), *picks[1 : len(maps)]] for picks in drawn]
    found = mixed(maps, chosen)
    for picks, each in zip(chosen, found, strict=True):
        sums = np.tensordot(picks, np.stack(maps).astype(np.int64), axes=1)
        expected = [[math.floor(Fraction(int(value), sum(picks)) + Fraction(1, 2)) for value in row] for row in sums]
        np.testing.assert_array_equal(each, expected)
        np.testing.assert_array_equal(mixed(maps, [reduced(tuple(picks))])[0], expected)


def test_no_mean_of_the_most_picks_is_a_level_off() -> None:
    """Every sum that a thousand picks can have: the rounded division never crosses a level."""
    picks = [1, 2, 4, 8, 16, 32, 64, 128, 256, 489]
    chance = np.random.default_rng(0)
    maps = [chance.integers(0, 256, (400, 400)).astype(np.uint8) for _ in picks]
    for each, count in zip(maps[:3], (0, 255, 128), strict=True):
        each[:3] = count
    whole = sum(picks)
    assert whole == blends.MOST_PICKS
    sums = sum(count * each.astype(np.int64) for count, each in zip(picks, maps, strict=True))
    np.testing.assert_array_equal(mixed(maps, [picks])[0], (2 * sums + whole) // (2 * whole))
    # Sums around each half: the closest that a mean comes to the next level.
    halves = np.array([level * whole + whole // 2 + off for level in range(255) for off in (-1, 0, 1)], np.float32)
    values = ((halves + np.float32(whole / 2)) / np.float32(whole)).astype(np.uint8)
    assert values.tolist() == [level + (off >= 0) for level in range(255) for off in (-1, 0, 1)]


def test_films_are_read_once_for_many_blends(library: list[Predictions]) -> None:
    calls: list[None] = []
    found = dict(blend_histograms(library, [(1, 0, 0), (2, 0, 1)], lambda: calls.append(None)))
    assert len(calls) == len(library[0]) and list(found) == [(1, 0, 0), (2, 0, 1)]
