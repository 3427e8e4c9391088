"""Subgroups by a column of the sample table, and cells that are too small to show."""

import numpy as np
import pytest

from pneumo_dist.report.subgroups import Subgroup, cells, split_by
from pneumo_dist.scoring.counts import triplet_counts
from pneumo_dist.scoring.histograms import film_histograms
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.worth import estimate
from shards.errors import InputError


def counts(subgroups: list[Subgroup]) -> list[tuple[str, int]]:
    return [(each.name, int(each.films.sum())) for each in subgroups]


def test_ages_fall_into_bands_and_a_missing_one_is_unknown() -> None:
    ages = np.array([0, 19, 20, 39, 40, 59, 60, 79, 80, 104, -1], np.int32)
    bands = ["under 20", "20 to 39", "40 to 59", "60 to 79", "80 and over"]
    assert counts(split_by("age", ages)) == [*((name, 2) for name in bands), ("unknown", 1)]


def test_numbers_fall_into_quartiles() -> None:
    values = np.random.default_rng(0).permutation(np.array([*range(100), -1, -1]))
    assert counts(split_by("mask_area", values)) == [
        *(("0 to 24", 25), ("25 to 49", 25), ("50 to 74", 25), ("75 to 99", 25), ("unknown", 2))
    ]
    assert counts(split_by("spacing_row", np.array([0.1, 0.1, np.nan]))) == [("0.1", 2), ("unknown", 1)]


def test_each_text_and_each_boolean_is_a_subgroup() -> None:
    views = np.array(["PA", "AP", "", None, "PA"], object)
    assert counts(split_by("view", views)) == [("AP", 1), ("PA", 2), ("unknown", 2)]
    assert counts(split_by("has_mask", np.array([True, False, True]))) == [("no", 1), ("yes", 2)]


def test_every_film_is_in_one_subgroup() -> None:
    random = np.random.default_rng(1)
    for column, values in (("age", random.integers(-1, 100, 200)), ("x", random.normal(size=200))):
        assert (np.sum([part.films for part in split_by(column, values)], axis=0) == 1).all()


def test_column_with_too_many_texts_is_an_input_error() -> None:
    with pytest.raises(
        InputError, match=r"column image_id of --by or --table: has 41 different texts; give a .* at most 40"
    ):
        split_by("image_id", np.array([f"film{i}" for i in range(41)], object))


def test_figures_over_fewer_than_ten_films_are_not_shown() -> None:
    random = np.random.default_rng(2)
    label = np.zeros((8, 8), np.uint8)
    label[2:5, 2:5] = 1
    positive = np.arange(60) % 3 == 0
    histograms = np.stack(
        [film_histograms(random.integers(0, 256, (8, 8)).astype(np.uint8), label * np.uint8(p)) for p in positive]
    )
    triplet = Triplet(0.9, 6, 0.5)
    names = np.repeat(np.array(["a", "b", "c"], object), [9, 10, 41])
    people = np.array([f"patient{number // 2}" for number in range(60)])
    small, ten, large = cells(split_by("view", names), triplet_counts(histograms, triplet), people)
    assert (small.films, small.positives, small.dice, small.sensitivity, small.specificity) == (None,) * 5
    assert (ten.films, ten.positives, ten.positive_dice, ten.specificity) == (10, None, None, None)
    dices = triplet_counts(histograms, triplet).dice
    assert ten.dice is not None and ten.dice.mean == pytest.approx(dices[9:19].mean(), abs=1e-12)
    inside = names == "c"
    assert (large.films, large.positives) == (41, int((positive & inside).sum()))
    called = (histograms[:, 0, 230:].sum(-1) >= 6) & (histograms[:, 0, 128:].sum(-1) > 0)
    assert large.dice == estimate(dices[inside], people[inside]), "intervals draw patients"
    assert large.positive_dice == estimate(dices[positive & inside], people[positive & inside])
    assert large.sensitivity == estimate(1.0 * called[positive & inside], people[positive & inside])
    assert large.specificity == estimate(1.0 * ~called[~positive & inside], people[~positive & inside])
    assert large.dice.low < large.dice.mean < large.dice.high
