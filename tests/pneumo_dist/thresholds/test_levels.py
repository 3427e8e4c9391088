"""The components of films above every level, compared with those of each mask alone."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from report_runs import naive_dices, store, worth_of
from threaded_ranks import on_ranks

from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.masks import Rule, apply_rule
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.levels import FilmLevels, film_levels, level_measures, scores_under
from pneumo_dist.thresholds.refine import film_components
from shards.dataset.table import Shards

sides = st.tuples(st.integers(1, 7), st.integers(1, 7))
film_maps = sides.flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 100, 101, 254, 255]) | st.integers(0, 255)),
        hnp.arrays(np.uint8, shape, elements=st.integers(0, 1)) | st.just(np.zeros(shape, np.uint8)),
    )
)


def equal(one: FilmLevels, other: FilmLevels) -> bool:
    names = ("above", "largest", "starts", "sizes", "hits")
    return one.truth == other.truth and all(np.array_equal(getattr(one, n), getattr(other, n)) for n in names)


@settings(max_examples=50, deadline=None)
@given(film_maps)
def test_components_are_those_of_each_level_alone(film: tuple[Map, Map]) -> None:
    found = film_levels(*film)
    assert found.truth == film[1].sum()
    for bottom in range(256):
        alone = film_components(*film, bottom / 255)
        assert found.above[bottom] == (film[0] > bottom).sum()
        assert found.largest[bottom] == alone.sizes.max(initial=0)
        own = slice(found.starts[bottom], found.starts[bottom + 1])
        pairs = sorted(zip(alone.sizes.tolist(), alone.hits.tolist(), strict=True)) if found.truth else []
        assert sorted(zip(found.sizes[own].tolist(), found.hits[own].tolist(), strict=True)) == pairs
        assert np.all(np.diff(found.sizes[own]) >= 0)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(film_maps, min_size=1, max_size=3),
    st.integers(0, 255),
    st.integers(0, 30),
    st.integers(0, 255),
    st.integers(0, 9),
)
def test_scores_are_those_of_the_masks(
    chosen: list[tuple[Map, Map]], top: int, area: int, bottom: int, size: int
) -> None:
    rule = Rule(Triplet(top / 255, area, bottom / 255), size)
    dices, called = scores_under([film_levels(*film) for film in chosen], rule)
    masks = [apply_rule(film, rule) for film, _ in chosen]
    sums = [int(mask.sum()) + int(truth.sum()) for mask, (_, truth) in zip(masks, chosen, strict=True)]
    hits = [int((mask & truth).sum()) for mask, (_, truth) in zip(masks, chosen, strict=True)]
    assert dices.tolist() == [2 * hit / total if total else 1.0 for hit, total in zip(hits, sums, strict=True)]
    assert called.tolist() == [bool(mask.any()) for mask in masks]


@pytest.mark.parametrize("world", [2, 5])
def test_ranks_share_the_films_and_get_all_of_them(films: Shards, tmp_path: Path, world: int) -> None:
    predictions = store(films, tmp_path / "exp", specks=0.002)
    alone = level_measures(predictions, threads=1)
    assert any(len(each.sizes) for each in alone) and any(not each.truth for each in alone)
    results, _ = on_ranks(world, lambda ranks: level_measures(predictions, ranks, threads=1))
    for result in results:
        assert len(result) == len(alone) and all(map(equal, result, alone))


def test_stored_films_score_as_their_masks_do(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp", specks=0.002, wrong=25)
    rule = Rule(Triplet(0.5, 300, 0.3), 40)
    calls: list[None] = []
    levels = level_measures(predictions, on_film=lambda: calls.append(None))
    dices, called = scores_under(levels, rule)
    assert dices.tolist() == list(naive_dices(predictions, rule).values()) and len(calls) == len(predictions)
    assert called.mean() == worth_of(predictions, rule)[1]
