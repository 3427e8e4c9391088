"""Order and split are pure functions: the same films in the same order for any number of ranks."""

import math
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pneumo_dist.config.stage import BatchError, StageConfig
from pneumo_dist.data.plan import (
    EpochPlan,
    FoldSplit,
    check_validation,
    fixed_batches,
    size_classes,
    split_fold,
    stream,
    stretch,
)
from shards.dataset.table import Shards
from shards.errors import InputError


def split_of(positives: int, negatives: int, areas: list[int] | None = None) -> FoldSplit:
    rows = np.arange(positives + negatives) * 3
    sizes = np.array(areas if areas is not None else [100] * positives, np.int64)
    return FoldSplit(rows, rows[:positives], rows[positives:], np.array([1, 4]), sizes)


def plan_of(
    positives: int, negatives: int, world: int = 1, seed: int = 0, areas: list[int] | None = None, **stage: object
) -> EpochPlan:
    config = StageConfig.model_validate({"name": "main", "global_batch": 8, "micro_batch": 1, **stage})
    return EpochPlan(split_of(positives, negatives, areas), config, seed, world)


# Sampling of a stage: constant or changing rates, or every film once.
samplings: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"sample_rate": st.floats(0.2, 1)}),
    st.fixed_dictionaries(
        {
            "sample_rate": st.floats(0.2, 1),
            "sample_rate_end": st.floats(0.2, 1),
            "sample_rate_schedule": st.sampled_from(["linear", "cosine"]),
            "size_classes": st.one_of(st.none(), st.integers(2, 6)),
        }
    ),
)


def fake_shards(**columns: list[object]) -> Shards:
    shards = object.__new__(Shards)
    shards.folder, shards.table, shards._columns = Path("shards"), pa.table(columns), {}
    return shards


def test_fold_without_a_positive_film_is_refused_for_validation() -> None:
    shards = fake_shards(
        split=["train", "train", "train", "holdout", "always_train"],
        fold=[0, 0, 1, -1, -1],
        group=list("abcde"),
        has_mask=[True, False, False, True, True],
    )
    check_validation(shards, 0)
    with pytest.raises(
        InputError, match=r"^shards: no film of fold 1 \(1 film\) has a pneumothorax.*--allow-empty-fold$"
    ):
        check_validation(shards, 1)


@pytest.mark.parametrize(
    ("positives", "rate", "negatives"), [(20, 0.5, 20), (20, 0.8, 5), (21, 0.7, 9), (10, 1.0, 0), (10, 0.25, 30)]
)
def test_epoch_holds_all_positives_and_the_rates_share_of_negatives(
    positives: int, rate: float, negatives: int
) -> None:
    plan = plan_of(positives, 40, sample_rate=rate)
    for epoch in range(3):
        order = plan.order(epoch)
        assert set(plan.split.positives) <= set(order)
        assert len(order) == plan.length(epoch) == positives + negatives
        assert epoch or len(set(order)) == len(order)


def test_without_a_rate_every_film_comes_once() -> None:
    plan = plan_of(5, 12)
    assert plan.length(4) == 17
    assert sorted(plan.order(4)) == sorted(plan.split.train)


def test_one_positive_film_is_enough_for_a_rate() -> None:
    assert plan_of(1, 40, sample_rate=0.1).length(0) == 10


def test_rate_without_a_positive_film_takes_every_film() -> None:
    assert sorted(plan_of(0, 9, sample_rate=0.5).order(0)) == sorted(plan_of(0, 9).split.train)


def test_steps_are_whole_global_batches() -> None:
    assert plan_of(5, 18).steps(0) == 2
    assert plan_of(5, 19).steps(0) == 3


def test_less_than_one_batch_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"main: epoch 1 has 7 films.*global_batch 8"):
        plan_of(3, 4)


def test_first_epoch_without_a_full_batch_is_named() -> None:
    rising: dict[str, Any] = {"sample_rate": 0.25, "sample_rate_end": 1.0}  # 20, 10, 7 and 5 films
    with pytest.raises(InputError, match=r"main: epoch 3 has 7 films.*global_batch 8"):
        plan_of(5, 40, epochs=4, **rising)
    with pytest.raises(InputError, match=r"main: epoch 4 has 5 films.*global_batch 6"):
        plan_of(5, 40, epochs=4, **{**rising, "global_batch": 6})
    plan_of(5, 40, epochs=4, **{**rising, "global_batch": 5})


def test_too_short_first_epoch_is_named_even_if_the_later_ones_are_long_enough() -> None:
    with pytest.raises(InputError, match=r"main: epoch 1 has 6 films.*global_batch 8"):
        plan_of(6, 30, epochs=3, sample_rate=1.0, sample_rate_end=0.2)


def test_rate_moves_from_the_first_epoch_to_the_last() -> None:
    def rates(epochs: int, **stage: Any) -> list[float | None]:
        plan = plan_of(20, 60, epochs=epochs, **stage)
        return [plan.rate(epoch) for epoch in range(epochs)]

    moving = {"sample_rate": 0.8, "sample_rate_end": 0.2}
    assert rates(3) == [None] * 3
    assert rates(3, sample_rate=0.7) == [0.7] * 3
    assert rates(4, **moving) == pytest.approx([0.8, 0.6, 0.4, 0.2], abs=1e-15)
    half = math.sqrt(0.5) / 2  # cos 45 degrees
    cosine = [0.8, 0.5 + 0.6 * half, 0.5, 0.5 - 0.6 * half, 0.2]
    assert rates(5, **moving, sample_rate_schedule="cosine") == pytest.approx(cosine, abs=1e-15)
    assert rates(1, **moving) == [0.8]
    assert rates(2, **moving) == [0.8, 0.2]


@given(
    start=st.floats(0.2, 1),
    end=st.floats(0.2, 1),
    epochs=st.integers(2, 30),
    schedule=st.sampled_from(["linear", "cosine"]),
)
def test_moving_rate_is_monotone_and_exact_at_both_ends(start: float, end: float, epochs: int, schedule: str) -> None:
    plan = plan_of(20, 60, epochs=epochs, sample_rate=start, sample_rate_end=end, sample_rate_schedule=schedule)
    rates = [cast(float, plan.rate(epoch)) for epoch in range(epochs)]
    assert (rates[0], rates[-1]) == (start, end)
    rising = [b - a if end >= start else a - b for a, b in pairwise(rates)]
    assert min(rising) >= -1e-15
    if start == end:
        assert set(rates) == {start}


@settings(max_examples=60, deadline=None)
@given(positives=st.integers(8, 40), negatives=st.integers(0, 60), sampling=samplings, epochs=st.integers(1, 6))
def test_counts_and_effective_rate_are_those_of_the_order(
    positives: int, negatives: int, sampling: dict[str, Any], epochs: int
) -> None:
    plan = plan_of(positives, negatives, epochs=epochs, **sampling)
    steps = []
    for epoch in range(epochs):
        order, rate = plan.order(epoch), plan.rate(epoch)
        wanted = negatives
        if rate is not None and negatives:
            wanted = round(positives * (1 - rate) / rate)
        drawn = int(np.isin(order, plan.split.positives).sum())
        assert (drawn, len(order) - drawn) == (positives, wanted)
        assert plan.length(epoch) == len(order)
        assert plan.effective_rate(epoch) == drawn / len(order)
        steps.append(plan.steps(epoch))
        assert steps[-1] * 8 <= len(order) < (steps[-1] + 1) * 8
    assert plan.total_steps == sum(steps)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.9, 0.1), (0.1, 0.9)])
def test_a_stage_of_very_many_epochs_is_planned_at_once(schedule: str, start: float, end: float) -> None:
    sampling: dict[str, Any] = {"sample_rate": start, "sample_rate_end": end, "sample_rate_schedule": schedule}
    began = time.monotonic()
    plan, few = plan_of(40, 400, epochs=10**8, **sampling), plan_of(40, 400, epochs=10**4, **sampling)
    assert plan.total_steps == pytest.approx(10**4 * few.total_steps, rel=1e-3)
    assert plan.steps(10**8 - 1) == few.steps(10**4 - 1)
    assert time.monotonic() - began < 2


def test_epoch_that_becomes_too_short_is_named_however_late() -> None:
    with pytest.raises(InputError, match=r"epoch (\d+) has 7 films, fewer than global_batch 8") as caught:
        plan_of(4, 400, epochs=10**8, sample_rate=0.4, sample_rate_end=0.7)
    epoch = int(str(caught.value).split("epoch ")[1].split()[0])
    plan = plan_of(4, 400, epochs=10**8, sample_rate=0.4, sample_rate_end=0.5)
    assert plan.steps(10**8 - 1) == 1
    rate = 0.4 + 0.3 * (epoch - 1) / (10**8 - 1)
    assert round(4 * (1 - rate) / rate) == 3 and round(4 * (1 - rate + 1e-7) / rate) == 4


def test_without_a_negative_film_positives_come_alone() -> None:
    plan = plan_of(10, 0, sample_rate=0.5)
    assert sorted(plan.order(1)) == sorted(plan.split.positives)
    assert (plan.length(1), plan.rate(1), plan.effective_rate(1)) == (10, 0.5, 1.0)


def test_rate_of_one_takes_each_positive_once_and_no_negative() -> None:
    plan = plan_of(10, 40, sample_rate=1.0)
    assert sorted(plan.order(2)) == sorted(plan.split.positives)
    assert plan.effective_rate(2) == 1.0


def test_plain_sampling_has_the_plain_share() -> None:
    plan = plan_of(5, 15)
    assert (plan.rate(0), plan.effective_rate(0)) == (None, 0.25)
    assert plan_of(0, 9, sample_rate=0.5).effective_rate(0) == 0.0


@pytest.mark.parametrize("negatives", [7, 13, 40, 100])
def test_negatives_are_seen_equally_often_over_epochs(negatives: int) -> None:
    plan = plan_of(10, negatives, sample_rate=0.4)  # 15 negatives an epoch
    seen: Counter[int] = Counter({int(row): 0 for row in plan.split.negatives})
    positives = set(plan.split.positives.tolist())
    for epoch in range(30):
        seen.update(row for row in plan.order(epoch).tolist() if row not in positives)
        assert max(seen.values()) - min(seen.values()) <= 1
    assert sum(seen.values()) == 30 * 15


@settings(max_examples=60, deadline=None)
@given(
    negatives=st.integers(1, 70),
    start=st.floats(0.2, 1),
    end=st.floats(0.2, 1),
    schedule=st.sampled_from(["linear", "cosine"]),
    seed=st.integers(0, 3),
)
def test_negatives_are_seen_equally_often_with_a_moving_rate(
    negatives: int, start: float, end: float, schedule: str, seed: int
) -> None:
    plan = plan_of(
        10,
        negatives,
        seed=seed,
        epochs=12,
        sample_rate=start,
        sample_rate_end=end,
        sample_rate_schedule=schedule,
    )
    seen = Counter(dict.fromkeys(plan.split.negatives.tolist(), 0))
    for epoch in range(12):
        order = plan.order(epoch)
        seen.update(order[np.isin(order, plan.split.negatives)].tolist())
        assert max(seen.values()) - min(seen.values()) <= 1


@settings(deadline=None)
@given(count=st.integers(1, 9), cuts=st.lists(st.integers(0, 25), min_size=1, max_size=6))
def test_successive_stretches_form_a_chain_of_permutations(count: int, cuts: list[int]) -> None:
    films = np.arange(count) * 2
    # Reference: the chain itself, built cycle by cycle.
    cycles = [stream(5, 2, "main", cycle).permutation(films) for cycle in range(sum(cuts) // count + 1)]
    chain = np.concatenate(cycles).tolist()
    start = 0
    for cut in cuts:
        assert stretch(films, start, cut, 5, 2, "main").tolist() == chain[start : start + cut]
        start += cut


def test_no_films_allow_only_an_empty_draw() -> None:
    assert stretch(np.array([], np.int64), 0, 0, 5).tolist() == []


def naive_class(area: int, low: int, high: int, count: int) -> int:
    """Return the class whose edges, low · (high / low)^(c / count), enclose the area."""
    edges = [low * (high / low) ** (number / count) for number in range(count + 1)]
    return next(number for number in range(count) if area < edges[number + 1] or number == count - 1)


@given(areas=st.lists(st.integers(1, 1 << 20), min_size=2, max_size=30), count=st.integers(2, 16))
def test_size_classes_are_equally_wide_in_log_area(areas: list[int], count: int) -> None:
    low, high = min(areas), max(areas)
    assume(low < high)
    # The reference's floats cannot decide near an edge.
    places = [math.log(area / low) / math.log(high / low) * count for area in areas]
    assume(all(abs(position - round(position)) > 1e-9 for position in places if 1e-9 < position < count - 1e-9))
    expected = [naive_class(area, low, high, count) for area in areas]
    assert size_classes(np.array(areas), count).tolist() == expected


@pytest.mark.parametrize(
    ("areas", "count", "classes"),
    [
        ([1, 9, 10, 99, 100, 999, 1000], 3, [0, 0, 1, 1, 2, 2, 2]),
        ([7 * 3**power for power in range(17)], 16, [*range(16), 15]),
        ([1024 * 1024, 1], 16, [15, 0]),
        ([50, 50, 50], 4, [3, 3, 3]),
        ([], 4, []),
    ],
)
def test_area_on_an_edge_belongs_to_the_class_above(areas: list[int], count: int, classes: list[int]) -> None:
    assert size_classes(np.array(areas, np.int64), count).tolist() == classes


@settings(max_examples=60, deadline=None)
@given(areas=st.lists(st.integers(1, 5000), min_size=8, max_size=40), count=st.integers(2, 8), seed=st.integers(0, 3))
def test_positives_come_in_equal_numbers_from_the_size_classes(areas: list[int], count: int, seed: int) -> None:
    positives = len(areas)
    plan = plan_of(positives, 30, seed=seed, areas=areas, sample_rate=0.6, size_classes=count)
    class_of = dict(zip(plan.split.positives.tolist(), size_classes(np.array(areas), count).tolist(), strict=True))
    filled = sorted(set(class_of.values()))
    base, extra = divmod(positives, len(filled))
    expected = {number: base + (position < extra) for position, number in enumerate(filled)}
    seen = Counter(dict.fromkeys(class_of, 0))
    for epoch in range(6):
        drawn = [row for row in plan.order(epoch).tolist() if row in class_of]
        counts = Counter(class_of[row] for row in drawn)
        assert {number: counts[number] for number in filled} == expected
        seen.update(drawn)
        for number in filled:
            times = [seen[row] for row in class_of if class_of[row] == number]
            assert max(times) - min(times) <= 1


def test_every_size_class_has_its_own_order() -> None:
    areas = [1] * 12 + [1000] * 12 + [1000000] * 3  # 9 from each
    plan = plan_of(27, 20, areas=areas, sample_rate=0.9, size_classes=3)
    small, middle = plan.split.positives[:12], plan.split.positives[12:24]
    drawn = [np.isin([small, middle], plan.order(epoch)).tolist() for epoch in range(3)]
    assert any(first != second for first, second in drawn)


def test_size_classes_draw_rare_sizes_more_often() -> None:
    areas = [10] * 8 + [1000]  # the classes between them are empty
    plan = plan_of(9, 20, areas=areas, sample_rate=0.9, size_classes=5)
    counts = Counter(plan.order(0).tolist())
    assert counts[int(plan.split.positives[8])] == 4
    assert sum(counts[int(row)] for row in plan.split.positives[:8]) == 5
    plain = Counter(plan_of(9, 20, areas=areas, sample_rate=0.9).order(0).tolist())
    assert all(plain[int(row)] == 1 for row in plan.split.positives)


def test_every_cycle_through_the_negatives_has_its_own_order() -> None:
    plan = plan_of(6, 6, sample_rate=0.5)
    negatives = set(plan.split.negatives.tolist())
    orders = [tuple(row for row in plan.order(epoch).tolist() if row in negatives) for epoch in range(4)]
    assert len(set(orders)) == 4


def test_order_changes_with_seed_stage_and_epoch_only() -> None:
    base = plan_of(20, 20).order(1)
    np.testing.assert_array_equal(base, plan_of(20, 20, world=4, micro_batch=2, epochs=3).order(1))
    for other in (plan_of(20, 20, seed=1).order(1), plan_of(20, 20, name="second").order(1), plan_of(20, 20).order(2)):
        assert not np.array_equal(base, other)


def test_order_is_the_same_in_every_version() -> None:
    """A run that resumes after an update continues the order that it started with."""
    plan = plan_of(6, 9, seed=7, areas=[1, 2, 3, 50, 60, 900], sample_rate=0.5, size_classes=2)
    assert [plan.order(epoch).tolist() for epoch in range(3)] == [
        [30, 12, 0, 39, 18, 24, 36, 6, 3, 9, 15, 42],
        [30, 15, 0, 9, 3, 21, 27, 33, 12, 6, 33, 36],
        [39, 21, 24, 0, 42, 15, 3, 27, 12, 6, 9, 18],
    ]


@pytest.mark.parametrize(("world", "micro"), [(1, 1), (1, 8), (2, 1), (2, 4), (4, 2), (8, 1)])
def test_ranks_together_walk_through_one_order(world: int, micro: int) -> None:
    plans = plan_of(11, 30, world=world, micro_batch=micro, epochs=2, sample_rate=0.5)
    ranks = [list(plans.micro_batches(rank, 0, 0)) for rank in range(world)]
    walked: dict[int, list[int]] = {0: [], 1: []}
    for parts in zip(*ranks, strict=True):
        assert len({(epoch, step) for epoch, step, _ in parts}) == 1
        for epoch, _, rows in parts:
            assert len(rows) == micro
            walked[epoch] += rows.tolist()
    for epoch, rows in walked.items():
        assert rows == plan_of(11, 30, epochs=2, sample_rate=0.5).order(epoch)[:16].tolist()


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 3), (1, 0), (1, 2), (2, 4)])
def test_stream_from_a_position_is_the_tail_of_the_whole(epoch: int, step: int) -> None:
    plan = plan_of(20, 21, world=2, micro_batch=2, epochs=3)
    assert (plan.steps(0), plan.accumulation) == (5, 2)
    whole = list(plan.micro_batches(1, 0, 0))
    tail = list(plan.micro_batches(1, epoch, step))
    assert len(whole) == 3 * 5 * 2
    expected = whole[(epoch * 5 + step) * 2 :]
    assert len(tail) == len(expected)
    for (*place_a, rows_a), (*place_b, rows_b) in zip(tail, expected, strict=True):
        assert place_a == place_b
        np.testing.assert_array_equal(rows_a, rows_b)


def test_stream_at_the_end_of_an_epoch_continues_with_the_next() -> None:
    plan = plan_of(20, 21, epochs=2)
    assert next(plan.micro_batches(0, 0, plan.steps(0)))[0] == 1


AREAS = [5, 7, 30, 31, 33, 400, 410, 2000, 2001, 9000, 9001]


@settings(max_examples=40, deadline=None)
@given(world=st.sampled_from([1, 2, 4, 8]), sampling=samplings, seed=st.integers(0, 3))
def test_every_world_walks_through_the_same_global_batches(world: int, sampling: dict[str, Any], seed: int) -> None:
    def walk(ranks: int, micro: int) -> list[tuple[int, list[int]]]:
        plan = plan_of(11, 40, world=ranks, micro_batch=micro, seed=seed, areas=AREAS, epochs=3, **sampling)
        assert plan.accumulation == 8 // (ranks * micro)
        parts = [list(plan.micro_batches(rank, 0, 0)) for rank in range(ranks)]
        flat = [(epoch, rows.tolist()) for same in zip(*parts, strict=True) for epoch, _, rows in same]
        assert len(flat) == plan.total_steps * 8 // micro
        return [(epoch, [row]) for epoch, rows in flat for row in rows]

    # Reference: each epoch's order, cut after its last whole global batch.
    plan = plan_of(11, 40, seed=seed, areas=AREAS, epochs=3, **sampling)
    expected = []
    for epoch in range(3):
        order = plan.order(epoch).tolist()
        expected += [(epoch, [row]) for row in order[: len(order) // 8 * 8]]
    assert walk(world, 1) == expected
    assert walk(world, 8 // world) == expected


@settings(max_examples=40, deadline=None)
@given(sampling=samplings, world=st.sampled_from([1, 2, 4]), position=st.floats(0, 1), data=st.data())
def test_restart_anywhere_equals_the_continuous_stream(
    sampling: dict[str, Any], world: int, position: float, data: st.DataObject
) -> None:
    def fresh() -> EpochPlan:
        return plan_of(11, 40, world=world, areas=AREAS, epochs=4, **sampling)

    plan, rank = fresh(), data.draw(st.integers(0, world - 1))
    done = round(position * plan.total_steps)
    epoch, step = 0, done
    while epoch < 3 and step >= plan.steps(epoch):
        epoch, step = epoch + 1, step - plan.steps(epoch)
    whole = [(at, of, rows.tolist()) for at, of, rows in plan.micro_batches(rank, 0, 0)]
    tail = [(at, of, rows.tolist()) for at, of, rows in fresh().micro_batches(rank, epoch, step)]
    assert tail == whole[done * plan.accumulation :]


def test_steps_follow_a_moving_rate() -> None:
    plan = plan_of(20, 200, epochs=4, sample_rate=0.8, sample_rate_end=0.2)
    assert [plan.length(epoch) for epoch in range(4)] == [25, 33, 50, 100]
    assert [plan.steps(epoch) for epoch in range(4)] == [3, 4, 6, 12]
    assert plan.total_steps == 25
    assert Counter(epoch for epoch, _, _ in plan.micro_batches(0, 1, 2)) == {1: 2 * 8, 2: 6 * 8, 3: 12 * 8}


def test_indivisible_batch_is_an_error_when_asked_for() -> None:
    with pytest.raises(BatchError):
        _ = plan_of(20, 20, world=3).accumulation


@pytest.mark.parametrize("count", [0, 1, 8, 9, 23])
def test_fixed_batches_cover_each_row_once_in_order(count: int) -> None:
    rows = np.arange(count) * 2
    batches = fixed_batches(rows, 8)
    assert [row for batch in batches for row in batch.tolist()] == rows.tolist()
    assert all(len(batch) == 8 for batch in batches[:-1])


@given(count=st.integers(0, 60), batch=st.integers(1, 9), world=st.sampled_from([1, 2, 4, 8]))
def test_ranks_dealt_fixed_batches_count_each_film_once(count: int, batch: int, world: int) -> None:
    rows = np.arange(count) * 2
    dealt = [fixed_batches(rows, batch)[rank::world] for rank in range(world)]
    assert sorted(int(row) for batches in dealt for part in batches for row in part) == rows.tolist()
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_random_streams_are_pure_and_different() -> None:
    draws = [stream(*words).random() for words in ((0, 1, "a"), (0, 2, "a"), (0, 1, "b"), (1, 1, "a"))]
    assert len(set(draws)) == 4
    assert stream(0, 1, "a").random() == draws[0]


def columns(**changed: list[object]) -> dict[str, list[object]]:
    return {
        "split": ["train", "train", "always_train", "train", "holdout", "always_train", "test", "train"],
        "fold": [0, 1, -1, 1, -1, -1, -1, 0],
        "group": ["a", "b", "b", "c", "d", "e", "f", "a"],
        "has_mask": [True, False, True, True, True, False, False, False],
        "mask_area": [10, 0, 20, 30, 40, 0, -1, 0],
        **changed,
    }


def test_fold_is_split_from_the_others() -> None:
    split = split_fold(fake_shards(**columns()), 0, always_train=False)
    assert split.train.tolist() == [1, 3]
    assert split.validation.tolist() == [0, 7]
    assert (split.positives.tolist(), split.negatives.tolist()) == ([3], [1])


def test_areas_are_those_of_the_training_positives() -> None:
    split = split_fold(fake_shards(**columns()), 1, always_train=False)
    assert (split.positives.tolist(), split.areas.tolist()) == ([0], [10])
    split = split_fold(fake_shards(**columns()), 0, always_train=True)
    assert (split.positives.tolist(), split.areas.tolist()) == ([2, 3], [20, 30])


def test_always_train_films_join_unless_their_patient_is_validated_on() -> None:
    assert split_fold(fake_shards(**columns()), 0, always_train=True).train.tolist() == [1, 2, 3, 5]
    assert split_fold(fake_shards(**columns()), 1, always_train=True).train.tolist() == [0, 5, 7]


def test_always_train_films_of_a_patient_held_out_never_train() -> None:
    films = fake_shards(**columns(group=["a", "b", "b", "c", "d", "d", "f", "a"]))
    assert split_fold(films, 0, always_train=True).train.tolist() == [1, 2, 3]
    assert split_fold(films, 1, always_train=True).train.tolist() == [0, 7]


def test_unknown_fold_is_an_input_error_that_names_the_folds() -> None:
    with pytest.raises(InputError, match=r"no fold 5.*0, 1"):
        split_fold(fake_shards(**columns()), 5, always_train=False)


def test_shards_without_training_films_have_no_folds() -> None:
    only_test = fake_shards(split=["test"], fold=[-1], group=["a"], has_mask=[False])
    with pytest.raises(InputError, match="none"):
        split_fold(only_test, 0, always_train=False)


def test_built_folds_share_no_patient_and_cover_all_films(films: Shards) -> None:
    splits = [split_fold(films, fold, always_train=False) for fold in (0, 1)]
    groups = films.column("group")
    for split in splits:
        assert not set(groups[split.train]) & set(groups[split.validation])
        assert split.areas.tolist() == films.column("mask_area")[split.positives].tolist()
        assert min(split.areas) > 0
    assert sorted(np.concatenate([split.validation for split in splits])) == list(range(12))


# Films without labels


def mixed_plan(world: int = 1, more: int = 7, films: int = 20, **stage: object) -> EpochPlan:
    settings = {"global_batch": 8, "micro_batch": 2, "epochs": 4, "unlabelled": {"mean_teacher": {}, "share": 0.5}}
    optim = {"optim": {"ema_decay": 0.9}}
    config = StageConfig.model_validate({"name": "main", **settings, **optim, **stage})
    split = split_of(films // 2, films - films // 2)
    return EpochPlan(replace(split, unlabelled=1000 + np.arange(more)), config, 3, world)


def all_batches(plan: EpochPlan) -> dict[tuple[int, int], list[list[int]]]:
    """The micro-batches of each (epoch, step) of all ranks, in the order of a single rank."""
    found: dict[tuple[int, int], dict[int, list[int]]] = {}
    for rank in range(plan.world):
        for number, (epoch, step, rows) in enumerate(plan.micro_batches(rank, 0, 0)):
            position = number % plan.accumulation * plan.world + rank
            found.setdefault((epoch, step), {})[position] = rows.tolist()
    return {place: [parts[each] for each in sorted(parts)] for place, parts in found.items()}


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_each_micro_batch_has_its_share_of_films_without_labels_at_its_end(share: float) -> None:
    plan = mixed_plan(unlabelled={"mean_teacher": {}, "share": share}, micro_batch=4, global_batch=16, films=40)
    count = round(4 * share)
    for micro_batches in all_batches(plan).values():
        for rows in micro_batches:
            assert [row >= 1000 for row in rows] == [False] * (4 - count) + [True] * count
    assert plan.steps(0) == 40 // (16 - 4 * count)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("sampling", [{}, {"sample_rate": 0.6, "sample_rate_end": 0.4}])
def test_films_without_labels_are_the_same_for_any_number_of_ranks(world: int, sampling: dict[str, Any]) -> None:
    assert all_batches(mixed_plan(world, **sampling)) == all_batches(mixed_plan(1, **sampling))


def test_films_with_labels_are_those_of_a_stage_without_others() -> None:
    mixed, plain = mixed_plan(), mixed_plan(unlabelled=None, global_batch=4, micro_batch=1)
    labelled = {
        place: [row for rows in parts for row in rows if row < 1000] for place, parts in all_batches(mixed).items()
    }
    assert labelled == {place: [row for rows in parts for row in rows] for place, parts in all_batches(plain).items()}


def test_films_without_labels_come_equally_often_over_all_epochs() -> None:
    drawn = [row for parts in all_batches(mixed_plan()).values() for rows in parts for row in rows if row >= 1000]
    counts = Counter(drawn)
    assert len(counts) == 7 and max(counts.values()) - min(counts.values()) <= 1
    # Each run of seven holds every film.
    assert all(len(set(drawn[start : start + 7])) == 7 for start in range(0, len(drawn) - 6, 7))


def test_stream_of_films_without_labels_continues_from_any_step() -> None:
    plan = mixed_plan(2)
    whole = [(epoch, step, rows.tolist()) for epoch, step, rows in plan.micro_batches(1, 0, 0)]
    for epoch, step in ((0, 3), (1, 0), (2, 1)):
        rest = [(at, position, rows.tolist()) for at, position, rows in plan.micro_batches(1, epoch, step)]
        assert rest == [each for each in whole if each[:2] >= (epoch, step)]


def test_stage_that_needs_films_without_labels_is_refused_where_there_are_none() -> None:
    with pytest.raises(InputError, match=r"^stage main: unlabelled needs films without labels, .*--unlabelled-dicom"):
        mixed_plan(more=0)
    with pytest.raises(InputError, match=r"has 3 films, fewer than the 4 with labels in global_batch 8; lower it"):
        mixed_plan(films=3)
