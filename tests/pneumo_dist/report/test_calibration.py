"""Calibration fitted on other folds, and the distance of scores from probabilities."""

import numpy as np
import pytest

from pneumo_dist.report.calibration import calibrate, calibrate_by, cross_calibrated, reliability


def films(count: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return overconfident scores in three folds: the chance of a pneumothorax is the square of the score."""
    random = np.random.default_rng(0)
    scores = random.integers(0, 256, count) / 255
    return scores, random.random(count) < scores**2, np.arange(count) % 3


def test_calibration_moves_scores_closer_to_probabilities() -> None:
    found = calibrate(*films())
    assert found is not None
    assert found.brier_after < found.brier_before
    assert found.after.error < found.before.error / 2


def test_a_fold_does_not_affect_its_own_calibration() -> None:
    scores, positive, folds = films()
    before = cross_calibrated(scores, positive, folds)
    turned = np.where(folds == 1, ~positive, positive)
    after = cross_calibrated(scores, turned, folds)
    assert before is not None and after is not None
    assert (before[folds == 1] == after[folds == 1]).all()
    assert (before[folds != 1] != after[folds != 1]).all()


def test_calibration_keeps_the_order_of_a_folds_films() -> None:
    scores, positive, folds = films()
    found = cross_calibrated(scores, positive, folds)
    assert found is not None
    own = np.argsort(scores[folds == 0], kind="stable")
    assert (np.diff(found[folds == 0][own]) >= 0).all()


@pytest.mark.parametrize(
    ("positive", "folds"), [([True, False] * 3, [0] * 6), ([True] * 6, [0, 1] * 3), ([True, False] * 3, [0, 1] * 3)]
)
def test_one_fold_or_one_kind_outside_a_fold_cannot_be_calibrated(positive: list[bool], folds: list[int]) -> None:
    assert calibrate(np.linspace(0, 1, 6), np.array(positive), np.array(folds)) is None


def test_errors_equal_the_naive_ones() -> None:
    scores, positive, _ = films(97)
    total = 0.0
    for part in range(10):
        inside = [
            (score, truth)
            for score, truth in zip(scores, positive, strict=True)
            if part / 10 <= score < (part + 1) / 10 or (part == 9 and score == 1)
        ]
        if inside:
            total += abs(np.mean([score for score, _ in inside]) - np.mean([t for _, t in inside])) * len(inside)
    found = reliability(scores, positive)
    assert found.error == pytest.approx(total / 97, abs=1e-12)
    assert found.films.sum() == 97
    result = calibrate(*films(97))
    assert result is not None
    assert result.brier_before == pytest.approx(np.mean((scores - positive) ** 2), abs=1e-12)


def test_scores_of_0_and_1_have_a_bin() -> None:
    found = reliability(np.array([0.0, 1.0, 1.0]), np.array([False, True, True]))
    assert found.films.tolist() == [1, 2] and found.error == 0
    calibrated = cross_calibrated(np.array([0.0, 1.0] * 4), np.array([False, True] * 4), np.array([0, 0, 1, 1] * 2))
    assert calibrated is not None and np.isfinite(calibrated).all()


def test_calibration_by_other_films_is_fitted_on_them_only() -> None:
    scores, positive, _ = films(900)
    fitted, own = (scores[:600], positive[:600]), (scores[600:], positive[600:])
    found = calibrate_by(*fitted, *own)
    assert found is not None
    assert found.brier_after < found.brier_before and found.after.error < found.before.error
    # With two folds, each is calibrated by the other, so the same fit gives the same chances.
    crossed = cross_calibrated(scores, positive, (np.arange(900) >= 600).astype(np.int64))
    assert crossed is not None
    assert found.brier_after == pytest.approx(np.mean((crossed[600:] - own[1]) ** 2), abs=1e-12)
    turned = calibrate_by(*fitted, own[0], ~own[1])
    assert turned is not None
    assert turned.after.score.tolist() == found.after.score.tolist()
    assert turned.after.share == pytest.approx(1 - found.after.share)


@pytest.mark.parametrize("place", [0, 1])
def test_films_of_one_kind_have_no_calibration(place: int) -> None:
    scores, positive, _ = films(40)
    truths = [positive, positive]
    truths[place] = np.zeros(40, np.bool_)
    assert calibrate_by(scores, truths[0], scores, truths[1]) is None
