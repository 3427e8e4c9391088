"""The stacked gate: features of a map, the probability, and the masks that it empties."""

import json
from dataclasses import asdict, replace

import numpy as np
import pydantic
import pytest
from scipy import ndimage

from pneumo_dist.scoring.histograms import film_histograms
from pneumo_dist.scoring.masks import Rule, apply_rule, apply_triplet, remove_small, rule_score
from pneumo_dist.scoring.stacking import Stacking, feature_names, is_feature, map_features, sigmoid
from pneumo_dist.scoring.stored import RuleModel, rule_content
from pneumo_dist.scoring.triplet import Triplet

NAMES = feature_names((0.1, 0.5), 0.6, with_class=True)
GATE = Stacking(NAMES, (0.5, 2, 1, 3, 4, 5), (1, 2, 3, 0.5, 0.1, 2), (0.7, -0.2, 0.3, 0.01, 0.5, -1), 0.25, 0.5)


def a_film(seed: int, size: tuple[int, int] = (40, 56)) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.random(size), 1.5)
    return np.asarray(127 * smooth**0.5, np.uint8) * np.uint8(seed % 3)


def naive_features(film: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], likely: float) -> list[float]:
    """The features of NAMES by their definitions."""
    share = 1024 * 1024 / film.size
    p = film / 255
    labels, _ = ndimage.label(film > 153, structure=np.ones((3, 3)))
    largest = np.bincount(labels.reshape(-1))[1:].max(initial=0)
    highest = (film.max() + 0.5) / 256
    sizes = [p.sum(), (film > 25).sum(), (film > 127).sum(), largest]
    mass, *areas = np.log(1 + np.array(sizes) * share)
    return [np.log(likely / (1 - likely)), mass, np.log(highest / (1 - highest)), *areas]


@pytest.mark.parametrize("seed", range(6))
def test_features_and_probability_follow_their_definitions(seed: int) -> None:
    film, likely = a_film(seed), 0.2 + 0.1 * seed
    expected = naive_features(film, likely)
    labels, _ = ndimage.label(film > 153, structure=np.ones((3, 3)))
    part = {NAMES[-1]: int(np.bincount(labels.reshape(-1))[1:].max(initial=0))}
    assert part[NAMES[-1]] > 1 or seed % 3 < 2
    found = map_features(NAMES, film_histograms(film, None)[0], part, likely)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    standard = (np.array(expected) - GATE.means) / GATE.scales
    probability = 1 / (1 + np.exp(-(standard @ GATE.coefficients + GATE.intercept)))
    assert GATE.film_probability(film, likely) == GATE.probability(found) == pytest.approx(probability, rel=1e-12)


def test_features_do_not_depend_on_the_resolution_of_the_film() -> None:
    film = a_film(2)
    double = np.repeat(np.repeat(film, 2, axis=0), 2, axis=1)
    assert GATE.film_probability(film, 0.3) == GATE.film_probability(double, 0.3)


def test_certain_and_empty_films_have_finite_probabilities() -> None:
    for level in (0, 255):
        for likely in (0.0, 1.0):
            assert 0 <= GATE.film_probability(np.full((8, 8), level, np.uint8), likely) <= 1
    assert (sigmoid(-1000), sigmoid(0), sigmoid(1000)) == (0, 0.5, 1)


def test_films_at_or_below_the_threshold_are_empty() -> None:
    film = a_film(2)
    triplet = Triplet(0, 0, 0.4)
    at = GATE.film_probability(film, 0.3)
    for threshold, is_called in ((at, False), (np.nextafter(at, 0), True)):
        rule = Rule(triplet, 3, stacking=replace(GATE, threshold=float(threshold)))
        expected = remove_small(apply_triplet(film, triplet), 3) * np.uint8(is_called)
        np.testing.assert_array_equal(apply_rule(film, rule, 0.3), expected)
        assert rule_score(film, rule, 0.3) == at and expected.any() == is_called


def test_only_a_gate_with_the_class_probability_needs_one() -> None:
    without = feature_names((0.5,), 0.5, with_class=False)
    gate = Stacking(without, (0,) * 4, (1,) * 4, (1,) * 4, 0, 0.5)
    assert not Rule(Triplet(0, 0, 0.5), stacking=gate).needs_class
    assert apply_rule(np.full((9, 9), 255, np.uint8), Rule(Triplet(0, 0, 0.5), stacking=gate)).all()
    assert Rule(Triplet(0, 0, 0.5), stacking=GATE).needs_class and Rule(Triplet(0, 0, 0.5), gate=0.1).needs_class


def test_rules_are_stored_exactly_and_those_without_a_gate_as_before() -> None:
    plain = Rule(Triplet(0.7, 800, 0.3), 40, 0.25)
    assert list(rule_content(plain)) == ["triplet", "smallest_part", "gate"]
    for rule in (plain, Rule(Triplet(0, 0, 0.3), stacking=GATE, outside=True)):
        assert RuleModel.model_validate_json(json.dumps(rule_content(rule))).rule() == rule


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"features": [*NAMES[:-1], "area_above_1.5"]}, "is no feature"),
        ({"features": [*NAMES[:-1], "perimeter"]}, "'perimeter' is no feature"),
        ({"features": [*NAMES[:-1], NAMES[0]]}, "the same name twice"),
        ({"means": [0.0]}, "each feature has a mean"),
        ({"scales": [0.0] * 6}, "greater than 0"),
        ({"coefficients": [float("inf")] * 6}, "finite"),
        ({"threshold": 1.5}, "less than or equal to 1"),
        ({"intercept": None}, "valid number"),
    ],
)
def test_other_gates_are_refused(changes: dict[str, object], says: str) -> None:
    content = rule_content(Rule(Triplet(0, 0, 0.3), stacking=GATE))
    content["stacking"] = {**json.loads(json.dumps(asdict(GATE))), **changes}
    with pytest.raises(pydantic.ValidationError, match=says):
        RuleModel.model_validate_json(json.dumps(content))


def test_names_of_features() -> None:
    text = "class_probability mass maximum area_above_0.1 area_above_0.5 largest_part_above_0.6"
    assert text.split() == list(NAMES)
    assert all(map(is_feature, NAMES)) and not any(map(is_feature, ("area_above_", "area_above_nan", "Mass")))
