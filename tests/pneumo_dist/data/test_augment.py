"""Augmentation parameters as a pure function, and the one matrix they compose into."""

import math

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from pneumo_dist.config import AugmentConfig
from pneumo_dist.data.augment import IDENTITY, Parameters, draw, matrix

CONFIG = AugmentConfig.model_validate(
    {
        "hflip": 0.5,
        "shift_scale_rotate": {"p": 0.6, "shift": 0.1, "scale": 0.2, "rotate": 30},
        "brightness_contrast": {"p": 0.3, "brightness": 0.25, "contrast": 0.4},
    }
)
DRAWS = 4000


@pytest.fixture(scope="module")
def drawn() -> list[Parameters]:
    return [draw(CONFIG, 7, number % 40, f"film{number}") for number in range(DRAWS)]


def test_draw_is_a_pure_function_of_seed_epoch_and_key() -> None:
    base = draw(CONFIG, 1, 2, "a")
    draw(CONFIG, 9, 9, "z")
    assert draw(CONFIG, 1, 2, "a") == base
    certain = AugmentConfig.model_validate({"shift_scale_rotate": {"p": 1.0}})
    angles = {
        draw(certain, seed, epoch, key).angle
        for seed, epoch, key in ((1, 2, "a"), (2, 2, "a"), (1, 3, "a"), (1, 2, "b"))
    }
    assert len(angles) == 4


def test_global_random_state_plays_no_part() -> None:
    np.random.seed(0)  # noqa: NPY002 - the legacy state is what must not matter
    first = draw(CONFIG, 1, 2, "a")
    np.random.seed(1)  # noqa: NPY002
    assert draw(CONFIG, 1, 2, "a") == first


def moved(p: Parameters) -> bool:
    return p.angle != 0


def toned(p: Parameters) -> bool:
    return p.gain != 1


def test_rates_are_close_to_the_probabilities(drawn: list[Parameters]) -> None:
    for rate, hits in (
        (0.5, [p.flip for p in drawn]),
        (0.6, [moved(p) for p in drawn]),
        (0.3, [toned(p) for p in drawn]),
    ):
        deviation = math.sqrt(rate * (1 - rate) / DRAWS)
        assert abs(sum(hits) / DRAWS - rate) < 4 * deviation


def test_choices_are_independent(drawn: list[Parameters]) -> None:
    both = sum(p.flip and moved(p) for p in drawn) / DRAWS
    assert abs(both - 0.3) < 0.03


def test_parameters_fill_their_ranges_and_keep_to_them(drawn: list[Parameters]) -> None:
    moves = [p for p in drawn if moved(p)]
    tones = [p for p in drawn if toned(p)]
    columns = [
        (np.array([p.angle for p in moves]), -math.radians(30), math.radians(30)),
        (np.array([p.scale for p in moves]), 0.8, 1.2),
        (np.array([p.shift[0] for p in moves]), -0.1, 0.1),
        (np.array([p.shift[1] for p in moves]), -0.1, 0.1),
        (np.array([p.gain for p in tones]), 0.6, 1.4),
        (np.array([p.offset - 0.5 * (1 - p.gain) for p in tones]), -0.25, 0.25),
    ]
    for values, low, high in columns:
        span = high - low
        assert low - 1e-12 <= values.min() < low + 0.02 * span
        assert high - 0.02 * span < values.max() <= high + 1e-12
        assert abs(values.mean() - (low + high) / 2) < 0.05 * span


def test_what_is_not_drawn_stays_the_identity(drawn: list[Parameters]) -> None:
    for p in drawn:
        if not moved(p):
            assert (p.scale, p.shift) == (1.0, (0.0, 0.0))
        if not toned(p):
            assert p.offset == 0.0
    off = AugmentConfig.model_validate({"hflip": 0, "shift_scale_rotate": {"p": 0}, "brightness_contrast": {"p": 0}})
    assert {draw(off, 0, epoch, "a") for epoch in range(50)} == {IDENTITY}


def test_changing_one_probability_moves_no_other_draw() -> None:
    other = CONFIG.model_copy(update={"hflip": 1.0})
    for number in range(20):
        base, changed = draw(CONFIG, 0, 0, str(number)), draw(other, 0, 0, str(number))
        assert (base.angle, base.scale, base.shift, base.gain, base.offset) == (
            changed.angle,
            changed.scale,
            changed.shift,
            changed.gain,
            changed.offset,
        )
        assert changed.flip


def to_stored(parameters: Parameters, point: tuple[float, float], size: int, stored: int) -> npt.NDArray[np.float64]:
    return np.asarray(matrix(parameters, size, stored) @ np.array([*point, 1.0]))


@pytest.mark.parametrize(("size", "stored"), [(128, 128), (128, 512), (96, 64)])
def test_identity_maps_corners_to_corners(size: int, stored: int) -> None:
    for x in (0, 1):
        for y in (0, 1):
            corner = to_stored(IDENTITY, (x * size, y * size), size, stored)
            np.testing.assert_allclose(corner, [x * stored, y * stored], atol=1e-9)


def test_flip_mirrors_left_and_right_only_and_twice_is_nothing() -> None:
    flip = Parameters(flip=True)
    np.testing.assert_allclose(to_stored(flip, (10, 30), 64, 64), [54, 30], atol=1e-12)
    twice = np.vstack([matrix(flip, 64, 64), [0, 0, 1]])
    np.testing.assert_allclose(twice @ twice, np.eye(3), atol=1e-12)


def test_positive_shift_moves_the_film_right_and_down() -> None:
    shifted = Parameters(shift=(0.25, 0.125))
    np.testing.assert_allclose(to_stored(shifted, (32 + 16, 32 + 8), 64, 64), [32, 32], atol=1e-12)


def test_larger_scale_makes_the_film_larger() -> None:
    np.testing.assert_allclose(to_stored(Parameters(scale=2.0), (64, 64), 64, 64), [48, 48], atol=1e-12)


@pytest.mark.parametrize(("size", "stored"), [(64, 64), (64, 160)])
@pytest.mark.parametrize("flip", [False, True])
def test_matrix_is_flip_then_scale_and_turn_about_the_centre_then_shift(size: int, stored: int, flip: bool) -> None:
    parameters = Parameters(flip=flip, angle=math.radians(20), scale=1.15, shift=(0.05, -0.08))
    turn = cv2.getRotationMatrix2D((0.0, 0.0), -20, 1.15)[:, :2]  # clockwise
    for point in ((0.0, 0.0), (0.3, -0.2), (-0.4, 0.45)):  # from the centre, as shares of the side
        mirrored = np.array([-point[0] if flip else point[0], point[1]])
        x, y = (turn @ mirrored + parameters.shift + 0.5) * size
        expected = (np.array(point) + 0.5) * stored
        np.testing.assert_allclose(to_stored(parameters, (x, y), size, stored), expected, atol=1e-9)
