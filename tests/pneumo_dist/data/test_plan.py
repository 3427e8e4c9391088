"""Order and split as pure functions: the same films, in the same order, whatever the ranks."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from pneumo_dist.config import BatchError, StageConfig
from pneumo_dist.data.plan import EpochPlan, FoldSplit, fixed_batches, split_fold, stream
from shards.errors import InputError
from shards.table import Shards


def split_of(positives: int, negatives: int) -> FoldSplit:
    rows = np.arange(positives + negatives) * 3
    return FoldSplit(rows, rows[:positives], rows[positives:], np.array([1, 4]))


def plan_of(positives: int, negatives: int, world: int = 1, seed: int = 0, **stage: object) -> EpochPlan:
    config = StageConfig.model_validate({"name": "main", "global_batch": 8, "micro_batch": 1, **stage})
    return EpochPlan(split_of(positives, negatives), config, seed, world)


def fake_shards(**columns: list[object]) -> Shards:
    arrays = {name: np.array(values) for name, values in columns.items()}

    def indices(*splits: str) -> npt.NDArray[np.int64]:
        return np.flatnonzero(np.isin(arrays["split"], splits))

    fake = cast(Shards, SimpleNamespace(folder=Path("shards"), column=arrays.__getitem__, indices=indices))
    return cast(
        Shards,
        SimpleNamespace(
            **vars(fake),
            folds=lambda: Shards.folds(fake),
            fold_rows=lambda fold, always_train: Shards.fold_rows(fake, fold, always_train),
        ),
    )


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
        assert len(order) == plan.length == positives + negatives
        assert epoch or len(set(order)) == len(order)


def test_without_a_rate_every_film_comes_once() -> None:
    plan = plan_of(5, 12)
    assert plan.length == 17
    assert sorted(plan.order(4)) == sorted(plan.split.train)


def test_rate_without_a_positive_film_takes_every_film() -> None:
    assert sorted(plan_of(0, 9, sample_rate=0.5).order(0)) == sorted(plan_of(0, 9).split.train)


def test_steps_are_whole_global_batches() -> None:
    assert plan_of(5, 18).steps == 2
    assert plan_of(5, 19).steps == 3


def test_less_than_one_batch_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"main.*7 films.*global_batch 8"):
        _ = plan_of(3, 4).steps


@pytest.mark.parametrize("negatives", [7, 13, 40, 100])
def test_negatives_are_seen_equally_often_over_epochs(negatives: int) -> None:
    plan = plan_of(10, negatives, sample_rate=0.4)  # 15 negatives an epoch
    seen: Counter[int] = Counter({int(row): 0 for row in plan.split.negatives})
    positives = set(plan.split.positives.tolist())
    for epoch in range(30):
        seen.update(row for row in plan.order(epoch).tolist() if row not in positives)
        assert max(seen.values()) - min(seen.values()) <= 1
    assert sum(seen.values()) == 30 * 15


def test_every_cycle_through_the_negatives_has_an_order_of_its_own() -> None:
    plan = plan_of(6, 6, sample_rate=0.5)
    negatives = set(plan.split.negatives.tolist())
    orders = [tuple(row for row in plan.order(epoch).tolist() if row in negatives) for epoch in range(4)]
    assert len(set(orders)) == 4


def test_order_changes_with_seed_stage_and_epoch_only() -> None:
    base = plan_of(20, 20).order(1)
    np.testing.assert_array_equal(base, plan_of(20, 20, world=4, micro_batch=2, epochs=3).order(1))
    for other in (plan_of(20, 20, seed=1).order(1), plan_of(20, 20, name="second").order(1), plan_of(20, 20).order(2)):
        assert not np.array_equal(base, other)


@pytest.mark.parametrize(("world", "micro"), [(1, 1), (1, 8), (2, 1), (2, 4), (4, 2), (8, 1)])
def test_ranks_together_walk_through_one_order(world: int, micro: int) -> None:
    plans = plan_of(11, 30, world=world, micro_batch=micro, epochs=2, sample_rate=0.5)
    ranks = [list(plans.micro_batches(rank, 0, 0)) for rank in range(world)]
    walked: dict[int, list[int]] = {0: [], 1: []}
    for parts in zip(*ranks, strict=True):
        assert len({epoch for epoch, _ in parts}) == 1
        for epoch, rows in parts:
            assert len(rows) == micro
            walked[epoch] += rows.tolist()
    for epoch, rows in walked.items():
        assert rows == plan_of(11, 30, epochs=2, sample_rate=0.5).order(epoch)[:16].tolist()


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 3), (1, 0), (1, 2), (2, 4)])
def test_stream_from_a_position_is_the_tail_of_the_whole(epoch: int, step: int) -> None:
    plan = plan_of(20, 21, world=2, micro_batch=2, epochs=3)
    assert (plan.steps, plan.accumulation) == (5, 2)
    whole = list(plan.micro_batches(1, 0, 0))
    tail = list(plan.micro_batches(1, epoch, step))
    assert len(whole) == 3 * 5 * 2
    expected = whole[(epoch * 5 + step) * 2 :]
    assert len(tail) == len(expected)
    for (epoch_a, rows_a), (epoch_b, rows_b) in zip(tail, expected, strict=True):
        assert epoch_a == epoch_b
        np.testing.assert_array_equal(rows_a, rows_b)


def test_stream_at_the_end_of_an_epoch_begins_the_next() -> None:
    plan = plan_of(20, 21, epochs=2)
    assert next(plan.micro_batches(0, 0, plan.steps))[0] == 1


def test_indivisible_batch_is_an_error_when_asked_for() -> None:
    with pytest.raises(BatchError):
        _ = plan_of(20, 20, world=3).accumulation


@pytest.mark.parametrize("count", [0, 1, 8, 9, 23])
def test_fixed_batches_cover_each_row_once_in_order(count: int) -> None:
    rows = np.arange(count) * 2
    batches = fixed_batches(rows, 8)
    assert [row for batch in batches for row in batch.tolist()] == rows.tolist()
    assert all(len(batch) == 8 for batch in batches[:-1])


def test_random_streams_are_pure_and_apart() -> None:
    draws = [stream(*words).random() for words in ((0, 1, "a"), (0, 2, "a"), (0, 1, "b"), (1, 1, "a"))]
    assert len(set(draws)) == 4
    assert stream(0, 1, "a").random() == draws[0]


def columns() -> dict[str, list[object]]:
    return {
        "split": ["train", "train", "always_train", "train", "holdout", "always_train", "test", "train"],
        "fold": [0, 1, -1, 1, -1, -1, -1, 0],
        "group": ["a", "b", "b", "c", "d", "e", "f", "a"],
        "has_mask": [True, False, True, True, True, False, False, False],
    }


def test_fold_is_split_from_the_others() -> None:
    split = split_fold(fake_shards(**columns()), 0, always_train=False)
    assert split.train.tolist() == [1, 3]
    assert split.validation.tolist() == [0, 7]
    assert (split.positives.tolist(), split.negatives.tolist()) == ([3], [1])


def test_always_train_films_join_unless_their_patient_is_validated_on() -> None:
    assert split_fold(fake_shards(**columns()), 0, always_train=True).train.tolist() == [1, 2, 3, 5]
    assert split_fold(fake_shards(**columns()), 1, always_train=True).train.tolist() == [0, 5, 7]


def test_always_train_films_of_a_patient_held_out_never_train() -> None:
    films = fake_shards(**{**columns(), "group": ["a", "b", "b", "c", "d", "d", "f", "a"]})
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
    assert sorted(np.concatenate([split.validation for split in splits])) == list(range(12))
