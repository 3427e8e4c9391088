"""The exact best gate, against trying every value."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pneumo_dist.thresholds.gate import best_gate

FILM = st.tuples(
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([0.5, 1.0, 2.0]),
)


def mean_with(gate: float, films: list[tuple[float, float, float, float]]) -> float:
    kept = [hidden if gate > 0 and p <= gate else shown for p, shown, hidden, _ in films]
    return sum(w * value for value, (*_, w) in zip(kept, films, strict=True)) / sum(w for *_, w in films)


@given(st.lists(FILM, min_size=1, max_size=12))
def test_no_gate_is_better_and_no_lower_one_as_good(films: list[tuple[float, float, float, float]]) -> None:
    gate, found = best_gate(*(np.array(column) for column in zip(*films, strict=True)))
    values = {value: mean_with(value, films) for value in [0.0, *(p for p, *_ in films)]}
    assert abs(found - max(values.values())) < 1e-9
    assert abs(mean_with(gate, films) - found) < 1e-9
    assert all(value < found - 1e-13 for lower, value in values.items() if lower < gate)


def test_gate_between_two_kinds_of_films() -> None:
    probabilities = np.array([0.1, 0.2, 0.9, 0.8])
    shown, hidden = np.array([0.0, 0.0, 0.7, 0.6]), np.array([1.0, 1.0, 0.0, 0.0])
    assert best_gate(probabilities, shown, hidden, np.ones(4)) == (0.2, 3.3 / 4)
    assert best_gate(1 - probabilities, shown, hidden, np.ones(4))[0] == 0.9
    assert best_gate(probabilities, hidden, shown, np.ones(4)) == (0.0, 0.5)


@given(st.lists(FILM, min_size=1, max_size=12), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_gate_stays_below_the_films_that_must_keep_their_masks(
    films: list[tuple[float, float, float, float]], below: float
) -> None:
    gate, found = best_gate(*(np.array(column) for column in zip(*films, strict=True)), below)
    allowed = [0.0, *(p for p, *_ in films if p < below)]
    assert gate in allowed
    assert abs(found - max(mean_with(value, films) for value in allowed)) < 1e-9
