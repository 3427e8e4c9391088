"""Folds: a patient is in one fold only, positives are spread, and the holdout is separate."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.build.folds import HOLDOUT, assign_folds
from shards.errors import InputError


def films(patients: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Patients of one to three films, about a quarter of the films positive."""
    rng = np.random.default_rng(seed)
    groups = [f"p{patient}" for patient in range(patients) for _ in range(rng.integers(1, 4))]
    return groups, (rng.random(len(groups)) < 0.25).astype(int).tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), folds=st.integers(2, 6), holdout=st.sampled_from([0.0, 0.1, 0.2, 0.35]))
def test_no_group_is_in_two_folds_or_in_a_fold_and_the_holdout(seed: int, folds: int, holdout: float) -> None:
    groups, strata = films(60, seed)
    assigned = assign_folds(groups, strata, folds, holdout, seed)
    homes: dict[str, set[int]] = {}
    for group, fold in zip(groups, assigned.tolist(), strict=True):
        homes.setdefault(group, set()).add(fold)
    assert {len(home) for home in homes.values()} == {1}
    assert set(assigned.tolist()) == set(range(folds)) | ({HOLDOUT} if holdout else set())


@pytest.mark.parametrize("holdout", [0.0, 0.05, 0.1, 0.15, 0.3])
def test_films_and_positives_are_spread_evenly(holdout: float) -> None:
    groups, strata = films(400)
    positive = np.array(strata)
    assigned = assign_folds(groups, strata, 5, holdout, 0)
    held = assigned == HOLDOUT
    assert abs(held.mean() - holdout) < 0.02
    if holdout:
        assert abs(positive[held].mean() - positive.mean()) < 0.03
    for fold in range(5):
        assert abs((assigned == fold).mean() - (1 - holdout) / 5) < 0.02
        assert abs(positive[assigned == fold].mean() - positive.mean()) < 0.03


def test_the_same_arguments_give_the_same_folds_and_another_seed_others() -> None:
    groups, strata = films(80)
    first, again, other = (assign_folds(groups, strata, 4, 0.1, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_names_of_the_groups_do_not_matter() -> None:
    groups, strata = films(80)
    renamed = [f"{group[::-1]}-renamed" for group in groups]
    np.testing.assert_array_equal(assign_folds(groups, strata, 4, 0.1, 2), assign_folds(renamed, strata, 4, 0.1, 2))


@pytest.mark.parametrize(
    ("folds", "holdout", "option"),
    [(1, 0.0, "--folds"), (0, 0.0, "--folds"), (5, -0.1, "--holdout"), (5, 1.0, "--holdout"), (5, 0.99, "--holdout")],
)
def test_an_impossible_split_names_its_option(folds: int, holdout: float, option: str) -> None:
    groups, strata = films(60)
    with pytest.raises(InputError, match=option):
        assign_folds(groups, strata, folds, holdout, 0)


@pytest.mark.parametrize("holdout", [0.01, 0.02])
def test_a_small_holdout_is_never_silently_none(holdout: float) -> None:
    groups, strata = films(400)
    assert (assign_folds(groups, strata, 5, holdout, 0) == HOLDOUT).any()


def test_fewer_patients_than_folds_are_counted_in_the_error() -> None:
    with pytest.raises(InputError, match=r"--folds 5 .*there are 3"):
        assign_folds(["a", "a", "b", "b", "c", "c"], [0, 1, 0, 1, 0, 1], 5, 0.0, 0)


def test_a_negative_seed_is_not_blamed_on_the_number_of_films() -> None:
    groups, strata = films(60)
    with pytest.raises(InputError, match="seed"):
        assign_folds(groups, strata, 5, 0.0, -1)
