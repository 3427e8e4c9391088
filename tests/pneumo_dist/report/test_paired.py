"""Paired differences of two ensembles."""

import math

import numpy as np
import pytest

from pneumo_dist.report.paired import paired


def test_paired_difference_is_film_by_film() -> None:
    mine, other = np.array([0.9, 0.5, 1.0, 0.2]), np.array([0.7, 0.5, 0.4, 0.3])
    found = paired("films", mine, other, np.array(list("abcd")))
    assert found.difference.mean == pytest.approx(0.175)
    assert (found.films, found.better, found.equal, found.worse) == (4, 2, 1, 1)
    # Ranks of |0.2|, |0.6|, |-0.1| are 2, 3, 1: of the 8 signs of these, 4 are at least as far from even as 5 to 1.
    assert found.p == pytest.approx(0.5)
    turned = paired("films", other, mine, np.array(list("abcd")))
    assert (turned.better, turned.worse, turned.difference.mean) == (1, 2, -found.difference.mean)
    assert math.isnan(paired("films", mine, mine, np.array(list("abcd"))).p)
