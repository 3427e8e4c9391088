"""Folds: a patient is in one fold only, positives are spread, and the holdout is separate."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.build.folds import HOLDOUT, assign_folds, check_split, extend_folds, size_strata
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
    assert first.dtype == np.int64
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
    with pytest.raises(InputError, match=r"--holdout 0.05 needs at least 20 patients, there are 3"):
        assign_folds(["a", "a", "b", "b", "c", "c"], [0, 1, 0, 1, 0, 1], 2, 0.05, 0)


def test_as_many_patients_as_folds_are_enough_and_a_rare_stratum_gives_no_warning() -> None:
    with warnings.catch_warnings(action="error"):
        folds = assign_folds(["a", "a", "b", "c", "d", "e"], [0, 1, 0, 0, 0, 0], 5, 0.0, 0)
    assert folds[0] == folds[1] and sorted(folds[1:]) == [0, 1, 2, 3, 4]


def test_strata_that_are_all_smaller_than_the_number_of_folds_are_refused() -> None:
    with pytest.raises(InputError, match=r"--folds 5: too few films"):
        assign_folds(list("abcde"), [0, 1, 2, 3, 4], 5, 0.0, 0)


def test_a_negative_seed_is_not_blamed_on_the_number_of_films() -> None:
    groups, strata = films(60)
    with pytest.raises(InputError, match="seed"):
        assign_folds(groups, strata, 5, 0.0, -1)


@pytest.mark.parametrize(
    ("holdout", "share"),
    [
        (0.0, "0"),
        (0.15, "3/20"),
        (0.13, "2/15"),
        (0.01, "1/100"),
        (0.0297, "2/67"),
        (0.0476, "1/21"),
        (0.0477, "1/20"),
        (0.95, "19/20"),
    ],
)
def test_a_holdout_is_the_simplest_fraction_close_to_it(holdout: float, share: str) -> None:
    assert check_split(2, holdout, 0) == check_split(2, holdout, 2**32 - 1) == Fraction(share)


@pytest.mark.parametrize(
    ("holdout", "seed", "option"), [(0.009, 0, "--holdout"), (0.951, 0, "--holdout"), (0.1, 2**32, "--seed")]
)
def test_options_just_past_their_limits_are_refused(holdout: float, seed: int, option: str) -> None:
    with pytest.raises(InputError, match=option):
        check_split(2, holdout, seed)


@pytest.mark.parametrize(
    ("areas", "folds", "strata"),
    [
        ([0, 50, 10, 40, 0, 30, 20, 60], 2, [0, 3, 1, 2, 0, 2, 1, 3]),
        ([7, 7, 7, 7], 2, [1, 1, 2, 2]),
        ([3, 0, 2, 1], 5, [1, 0, 1, 1]),
        ([0, 0], 5, [0, 0]),
        ([], 5, []),
        (range(100, 0, -1), 5, [1 + area // 10 for area in range(99, -1, -1)]),
        (range(1, 31), 2, [1 + area // 3 for area in range(30)]),
        ([1, 2, 3, 4, 5], 2, [1, 1, 1, 2, 2]),
        ([1, 2] * 250, 5, [1 + film // 100 + 5 * (film % 2) for film in range(500)]),
    ],
    ids=[
        "thirds",
        "equal areas in table order",
        "too few for two strata",
        "no mask",
        "no film",
        "deciles",
        "at most ten",
        "five masks in two folds",
        "many equal areas in table order",
    ],
)
def test_strata_are_equal_shares_of_the_masks_by_size(areas: list[int], folds: int, strata: list[int]) -> None:
    assert size_strata(np.array(areas, np.int64), folds).tolist() == strata


@pytest.mark.parametrize(
    ("known", "new", "folds"),
    [
        ("a0 b0 c0 :0 1 -1", "c0 a0 b0", [-1, 0, 1]),
        ("a1 b0 c0 d0 :0 0 1 1", "e1 f0", [1, 0]),
        ("a0 b0 :0 1", "a1 u1", [0, 1]),
        ("a0 b0 :0 1", "t1 t1 a1 u1", [0, 0, 0, 1]),
        ("a0 b0 :0 1", "s0 l0 l0 l0", [1, 0, 0, 0]),
        ("a0 b0 :0 1", "y0 x0", [0, 1]),
        ("a0 b0 :0 1", "l0 l0 l0 s0 t0 u0 v0", [0, 0, 0, 1, 1, 1, 0]),
        ("a0 b0 :0 1", "l0 s0 l0 t0 l0", [0, 1, 0, 1, 0]),
        ("a1 b0 :0 1", "l1 l0 l1", [1, 1, 1]),
        ("a0 b0 c0 d0 :0 0 0 1", "p0 q0 r0 s0 t0", [0, 1, 0, 0, 0]),
    ],
    ids=[
        "known groups keep their fold",
        "a fold without the stratum comes first",
        "films of known groups are counted",
        "a known group keeps its fold even if another lacks its stratum",
        "the largest group comes first",
        "equal groups come in table order",
        "every film of a group counts",
        "films of a group are apart in the table",
        "strata count by their films",
        "folds keep their shares",
    ],
)
def test_new_films_join_the_fold_that_lacks_their_strata(known: str, new: str, folds: list[int]) -> None:
    names, old = known.split(":")
    films = [*names.split(), *new.split()]
    groups, strata = [film[0] for film in films], [int(film[1]) for film in films]
    assert extend_folds(groups, strata, np.array(old.split(), np.int64)).tolist() == folds
