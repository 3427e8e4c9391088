"""Augmentation parameters are a pure function, and their statistics match the stated ranges."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.data.augment import IDENTITY, NOISE_OFFSETS, WHOLE, Parameters, draw
from pneumo_dist.data.elastic import ElasticField, InputElastic
from pneumo_dist.data.geometry import GridSteps, Lens, Stored, coarse_map

CONFIG = AugmentConfig.model_validate(
    {
        "hflip": 0.5,
        "shift_scale_rotate": {"p": 0.6, "shift": 0.1, "scale": 0.2, "rotate": 30},
        "distortion": {
            "p": 0.4,
            "elastic": {"alpha": 120, "sigma": 6, "alpha_affine": 3.6},
            "grid": 0.3,
            "optical": {"distort": 2, "shift": 0.5},
        },
        "random_resized_crop": {"p": 0.7, "area": [0.3, 0.6], "aspect": [0.75, 1.5]},
        "clahe": {"p": 0.2},
        "tone": {"p": 0.3, "contrast": 0.4, "gamma": [0.8, 1.5], "brightness": 0.25},
        "noise": {"p": 0.8, "sigma": [0.01, 0.05]},
    }
)
PROBABILITIES = {
    "hflip": 0.5,
    "shift_scale_rotate": 0.6,
    "distortion": 0.4,
    "random_resized_crop": 0.7,
    "clahe": 0.2,
    "tone": 0.3,
    "noise": 0.8,
}
DRAWS = 4000


def altered(config: AugmentConfig, changes: dict[str, Any]) -> AugmentConfig:
    """Return a config with keys of its sections changed."""
    values = config.model_dump()
    for name, change in changes.items():
        values[name] = {**values[name], **change} if isinstance(change, dict) else change
    return AugmentConfig.model_validate(values)


def with_probabilities(config: AugmentConfig, **p: float) -> AugmentConfig:
    return altered(config, {name: value if name == "hflip" else {"p": value} for name, value in p.items()})


CERTAIN = with_probabilities(CONFIG, **dict.fromkeys(PROBABILITIES, 1.0))
OFF = with_probabilities(CONFIG, **dict.fromkeys(PROBABILITIES, 0.0))


def many(config: AugmentConfig) -> list[Parameters]:
    return [draw(config, 7, number % 40, f"film{number}") for number in range(DRAWS)]


@pytest.fixture(scope="module")
def drawn() -> list[Parameters]:
    return many(CONFIG)


@pytest.fixture(scope="module")
def certain() -> list[Parameters]:
    return many(CERTAIN)


def chances(p: Parameters) -> dict[str, bool]:
    """Return whether each augmentation changes a film."""
    g = p.geometry
    return {
        "hflip": g.flip,
        "shift_scale_rotate": g.angle != 0,
        "distortion": g.warp is not None,
        "random_resized_crop": g.crop != WHOLE,
        "clahe": p.clahe,
        "tone": (p.gain, p.offset, p.gamma) != (1, 0, 1),
        "noise": p.noise_sigma != 0,
    }


def tone_kind(p: Parameters) -> str | None:
    changed = {"contrast": p.gain != 1, "gamma": p.gamma != 1, "brightness": p.offset != 0}
    kinds = [kind for kind, is_changed in changed.items() if is_changed]
    assert len(kinds) <= 1, "more than one kind of tone"
    return kinds[0] if kinds else None


def warp_kind(p: Parameters) -> str | None:
    kinds = {ElasticField: "elastic", GridSteps: "grid", Lens: "optical"}
    return None if p.geometry.warp is None else kinds[type(p.geometry.warp)]


def close_to(rate: float, hits: list[bool]) -> bool:
    """Return whether a share is within four standard deviations of its expectation."""
    return abs(sum(hits) / len(hits) - rate) < 4 * math.sqrt(max(rate * (1 - rate), 1e-12) / len(hits))


# -- a pure function of seed, epoch and key


def test_draw_is_a_pure_function_of_seed_epoch_and_key() -> None:
    base = draw(CERTAIN, 1, 2, "a")
    draw(CERTAIN, 9, 9, "z")
    assert draw(CERTAIN, 1, 2, "a") == base
    films = [(1, 2, "a"), (2, 2, "a"), (1, 3, "a"), (1, 2, "b"), (2, 1, "a")]
    drawn = [draw(CERTAIN, *film) for film in films]
    for values in ({p.geometry.angle for p in drawn}, {p.geometry.crop for p in drawn}, {p.noise_sigma for p in drawn}):
        assert len(values) == len(films)


@pytest.mark.parametrize(
    ("key", "tone", "angle", "noise", "point"),
    [
        ("a", (1.0, 0.029357057597389158, 1.0), 0.32618961431210086, 0.011476122915439904, (364.1562, 134.78857)),
        ("c", (1.0, 0.0, 1.3931053998157354), 0.023841607046380237, 0.015578819732984694, (339.88184, 200.23195)),
        ("d", (1.0956108071029453, 0.0, 1.0), -0.34768190035491797, 0.0398322426731251, (118.02371, 503.12555)),
    ],
)
def test_recorded_runs_draw_what_they_drew(
    key: str, tone: tuple[float, ...], angle: float, noise: float, point: tuple[float, float]
) -> None:
    """Values of v0.4.0, for an elastic field, a lens and a grid."""
    drawn = draw(CERTAIN, 1, 2, key)
    assert (drawn.gain, drawn.offset, drawn.gamma) == tone and drawn.mean_offset == 0
    assert (drawn.geometry.angle, drawn.noise_sigma) == (angle, noise)
    np.testing.assert_allclose(coarse_map(drawn.geometry, 64, Stored(1024))[7, 50], point, rtol=1e-6)


def test_global_random_state_does_not_matter() -> None:
    np.random.seed(0)  # noqa: NPY002 - the legacy state must not matter
    first = draw(CERTAIN, 1, 2, "a")
    np.random.seed(1)  # noqa: NPY002
    assert draw(CERTAIN, 1, 2, "a") == first


def test_another_process_with_other_hashes_draws_the_same() -> None:
    code = (
        "import sys; from pneumo_dist.config.augment import AugmentConfig; from pneumo_dist.data.augment import draw;"
        "print([draw(AugmentConfig.model_validate_json(sys.argv[1]), 1, 2, k) for k in ('a', 'film.b')])"
    )
    command = [sys.executable, "-c", code, CERTAIN.model_dump_json()]
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == str([draw(CERTAIN, 1, 2, key) for key in ("a", "film.b")])


def groups(p: Parameters) -> dict[str, Any]:
    """Return the parameters that each augmentation has drawn."""
    g = p.geometry
    return {
        "hflip": g.flip,
        "shift_scale_rotate": (g.angle, g.scale, g.shift),
        "distortion": g.warp,
        "random_resized_crop": g.crop,
        "clahe": p.clahe,
        "tone": (p.gain, p.offset, p.gamma),
        "noise": (p.noise_sigma,),
        "noise window": p.noise_origin,
    }


@pytest.mark.parametrize("name", PROBABILITIES)
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_changing_one_probability_changes_no_other_draw(name: str, p: float) -> None:
    other = with_probabilities(CONFIG, **{name: p})
    has_changed = False
    for number in range(60):
        base, changed = groups(draw(CONFIG, 0, 3, str(number))), groups(draw(other, 0, 3, str(number)))
        has_changed |= base.pop(name) != changed.pop(name)
        assert base == changed
    assert has_changed


@pytest.mark.parametrize(
    ("name", "kind"), [("tone", kind) for kind in ("contrast", "gamma", "brightness")] + [("distortion", "grid")]
)
def test_leaving_one_kind_out_changes_no_other_draw(name: str, kind: str) -> None:
    other = altered(CONFIG, {name: {kind: None}})
    for number in range(60):
        base, changed = groups(draw(CONFIG, 0, 3, str(number))), groups(draw(other, 0, 3, str(number)))
        base.pop(name), changed.pop(name)
        assert base == changed


# -- probabilities


def test_rates_are_close_to_the_probabilities(drawn: list[Parameters]) -> None:
    choices = [chances(p) for p in drawn]
    for name, rate in PROBABILITIES.items():
        assert close_to(rate, [chance[name] for chance in choices]), name


def test_choices_are_independent(drawn: list[Parameters]) -> None:
    choices = [chances(p) for p in drawn]
    for one, other in combinations(PROBABILITIES, 2):
        both = [chance[one] and chance[other] for chance in choices]
        assert close_to(PROBABILITIES[one] * PROBABILITIES[other], both), (one, other)


def test_certain_augmentations_always_happen_and_impossible_ones_never() -> None:
    for number in range(200):
        assert all(chances(draw(CERTAIN, 0, number, "a")).values())
    assert {draw(OFF, 0, number, "a").geometry for number in range(50)} == {IDENTITY.geometry}
    for number in range(50):
        assert not any(chances(draw(OFF, 0, number, "a")).values())


def test_parameters_that_are_not_drawn_stay_the_identity(drawn: list[Parameters]) -> None:
    for p in drawn:
        if p.geometry.angle == 0:
            assert (p.geometry.scale, p.geometry.shift) == (1.0, (0.0, 0.0))


# -- ranges


def columns(drawn: list[Parameters]) -> dict[str, tuple[npt.NDArray[np.float64], float, float]]:
    """Return every uniformly drawn number: its values, minimum and maximum."""

    def tone(kind: str, value: Callable[[Parameters], float]) -> npt.NDArray[np.float64]:
        return np.array([value(p) for p in drawn if tone_kind(p) == kind])

    warps = [p.geometry.warp for p in drawn]
    elastic = np.array([warp.corners for warp in warps if isinstance(warp, ElasticField)]) * 1024
    grid = np.array([(*warp.columns, *warp.rows) for warp in warps if isinstance(warp, GridSteps)])
    lens = np.array([(warp.k, *warp.axis) for warp in warps if isinstance(warp, Lens)])
    crop = np.array([p.geometry.crop for p in drawn])
    aspect = math.log(0.75), math.log(1.5)
    return {
        "angle": (np.array([p.geometry.angle for p in drawn]), -math.radians(30), math.radians(30)),
        "scale": (np.array([p.geometry.scale for p in drawn]), 0.8, 1.2),
        "shift across": (np.array([p.geometry.shift[0] for p in drawn]), -0.1, 0.1),
        "shift down": (np.array([p.geometry.shift[1] for p in drawn]), -0.1, 0.1),
        "contrast": (tone("contrast", lambda p: p.gain), 0.6, 1.4),
        "gamma": (tone("gamma", lambda p: p.gamma), 0.8, 1.5),
        "brightness": (tone("brightness", lambda p: p.offset), -0.25, 0.25),
        "noise": (np.array([abs(p.noise_sigma) for p in drawn]), 0.01, 0.05),
        "crop area": (crop[:, 2] * crop[:, 3], 0.3, 0.6),
        "crop aspect": (np.log(crop[:, 2] / crop[:, 3]), *aspect),
        "crop left": (crop[:, 0] / (1 - crop[:, 2]), 0, 1),
        "crop top": (crop[:, 1] / (1 - crop[:, 3]), 0, 1),
        **{f"elastic corner {n}": (elastic[:, n], -3.6, 3.6) for n in range(6)},
        **{f"grid width {n}": (grid[:, n], 0.7, 1.3) for n in range(10)},
        "optical k": (lens[:, 0], -2, 2),
        "optical axis x": (lens[:, 1] * 1024, -0.5, 0.5),
        "optical axis y": (lens[:, 2] * 1024, -0.5, 0.5),
    }


def test_parameters_fill_their_ranges_evenly_and_stay_inside(certain: list[Parameters]) -> None:
    for name, (values, low, high) in columns(certain).items():
        span = high - low
        assert len(values) > 1000, name
        assert low - 1e-9 <= values.min() < low + 0.02 * span, name
        assert high - 0.02 * span < values.max() <= high + 1e-9, name
        counts = np.histogram(values, 8, (low, high))[0] / len(values)
        assert np.abs(counts - 1 / 8).max() < 4.5 * math.sqrt(7 / 64 / len(values)), name


def test_no_two_parameters_of_a_film_share_a_draw(certain: list[Parameters]) -> None:
    every = {name: values for name, (values, _, _) in columns(certain).items() if len(values) == DRAWS}
    every |= {
        "noise sign": np.array([math.copysign(1, p.noise_sigma) for p in certain]),
        "noise row": np.array([p.noise_origin[0] for p in certain], float),
        "noise column": np.array([p.noise_origin[1] for p in certain], float),
    }
    assert len(every) == 12
    for one, other in combinations(every, 2):
        assert abs(np.corrcoef(every[one], every[other])[0, 1]) < 4.5 / math.sqrt(DRAWS), (one, other)
    kinds: list[tuple[str, str, Callable[[Parameters], float]]] = [
        ("contrast", "gain", lambda p: p.gain),
        ("gamma", "gamma", lambda p: p.gamma),
        ("brightness", "offset", lambda p: p.offset),
    ]
    for kind, name, value in kinds:
        some = [number for number, p in enumerate(certain) if tone_kind(p) == kind]
        tones = [value(certain[number]) for number in some]
        for other, values in every.items():
            assert abs(np.corrcoef(tones, values[some])[0, 1]) < 4.5 / math.sqrt(len(some)), (name, other)


def test_elastic_fields_have_the_recipes_lengths_and_different_seeds(certain: list[Parameters]) -> None:
    fields = [p.geometry.warp for p in certain if isinstance(p.geometry.warp, ElasticField)]
    assert {(field.alpha * 1024, field.sigma * 1024) for field in fields} == {(120, 6)}
    assert len({field.seed for field in fields}) == len(fields)


# -- other forms of the same draws


def test_other_forms_take_the_same_draws(certain: list[Parameters]) -> None:
    forms = {
        "distortion": {
            "elastic": {"pixels": "input", "alpha": 120, "sigma": 6, "alpha_affine": 3.6},
            "grid_open": True,
        },
        "tone": {"brightness_by": "mean", "gamma_exponent": "1/g"},
    }
    warps = set()
    for base, other in zip(certain, many(altered(CERTAIN, forms)), strict=True):
        warp, expected = base.geometry.warp, base.geometry.warp
        if isinstance(warp, GridSteps):
            expected = replace(warp, is_open=True)
        if isinstance(warp, ElasticField):
            assert isinstance(other.geometry.warp, InputElastic)
            np.testing.assert_allclose(other.geometry.warp.corners, np.array(warp.corners) * 1024)
            expected = InputElastic(warp.seed, 120, 6, other.geometry.warp.corners)
        warps.add(type(other.geometry.warp))
        toned = replace(base, offset=0.0, mean_offset=base.offset, gamma=1 / base.gamma)
        assert other == replace(toned, geometry=replace(base.geometry, warp=expected))
    assert warps == {InputElastic, GridSteps, Lens}


def test_exponent_is_the_inverse_of_an_evenly_drawn_g() -> None:
    tone = {"p": 1, "contrast": None, "brightness": None, "gamma": [0.8, 1.2], "gamma_exponent": "1/g"}
    exponents = np.array([p.gamma for p in many(altered(CERTAIN, {"tone": tone}))])
    counts = np.histogram(1 / exponents, 8, (0.8, 1.2))[0]
    assert counts.sum() == DRAWS
    assert np.abs(counts / DRAWS - 1 / 8).max() < 4.5 * math.sqrt(7 / 64 / DRAWS)
    # The mean of 1/g is ln(1.2 / 0.8) / 0.4.
    assert abs(exponents.mean() - math.log(1.5) / 0.4) < 4.5 * exponents.std() / math.sqrt(DRAWS)


# -- one of several


def test_kinds_of_tone_and_distortion_are_equally_likely(certain: list[Parameters]) -> None:
    for kind in ("contrast", "gamma", "brightness"):
        assert close_to(1 / 3, [tone_kind(p) == kind for p in certain]), kind
    for kind in ("elastic", "grid", "optical"):
        assert close_to(1 / 3, [warp_kind(p) == kind for p in certain]), kind


@pytest.mark.parametrize(
    ("name", "kinds", "kind_of"),
    [
        ("tone", ("contrast", "gamma", "brightness"), tone_kind),
        ("distortion", ("elastic", "grid", "optical"), warp_kind),
    ],
)
def test_null_leaves_a_kind_out_and_the_others_share_its_probability(
    name: str, kinds: tuple[str, ...], kind_of: Callable[[Parameters], str | None]
) -> None:
    for out in kinds:
        choices = [kind_of(p) for p in many(altered(CERTAIN, {name: {out: None}}))[:1500]]
        rest = [kind for kind in kinds if kind != out]
        assert set(choices) == set(rest)
        assert close_to(0.5, [kind == rest[0] for kind in choices])
        alone = altered(CERTAIN, {name: {kind: None for kind in kinds if kind != out}})
        assert {kind_of(draw(alone, 0, epoch, "a")) for epoch in range(40)} == {out}


@pytest.mark.parametrize("name", ["tone", "distortion"])
def test_probability_without_any_kind_is_refused(name: str) -> None:
    kinds = ("contrast", "gamma", "brightness") if name == "tone" else ("elastic", "grid", "optical")
    nothing = dict.fromkeys(kinds)
    with pytest.raises(ValidationError, match="all null"):
        AugmentConfig.model_validate({name: {"p": 0.1, **nothing}})
    off = AugmentConfig.model_validate({name: {"p": 0.0, **nothing}})
    assert not chances(draw(off, 0, 0, "a"))[name]


# -- noise


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_noise_has_both_signs_equally_often_and_its_own_probability(p: float) -> None:
    sigmas = [drawn.noise_sigma for drawn in many(with_probabilities(CONFIG, noise=p))]
    noisy = [sigma for sigma in sigmas if sigma]
    assert close_to(p, [sigma != 0 for sigma in sigmas])
    assert close_to(0.5, [sigma > 0 for sigma in noisy])
    for sign in (1, -1):
        values = np.array([sign * sigma for sigma in noisy if sigma * sign > 0])
        assert 0.01 <= values.min() < 0.011 and 0.049 < values.max() <= 0.05
        assert abs(values.mean() - 0.03) < 0.0015


def test_noise_windows_start_anywhere_in_the_field(certain: list[Parameters]) -> None:
    for axis in (0, 1):
        places = {p.noise_origin[axis] for p in certain}
        assert places == set(range(NOISE_OFFSETS))
    assert len({p.noise_origin for p in certain}) > 0.8 * DRAWS


# -- windows


@given(
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(sorted),
    st.integers(0, 2**32),
)
def test_crop_stays_inside_the_film_and_is_never_larger_than_its_range(
    area: list[float], aspect: list[float], seed: int
) -> None:
    config = AugmentConfig.model_validate({"random_resized_crop": {"p": 1, "area": area, "aspect": aspect}})
    left, top, width, height = draw(config, seed, 0, "a").geometry.crop
    assert 0 <= left <= left + width <= 1 + 1e-12
    assert 0 <= top <= top + height <= 1 + 1e-12
    assert width * height <= area[1] + 1e-9
    if area[1] * max(aspect[1], 1 / aspect[0]) <= 1:  # every window fits
        assert area[0] - 1e-9 <= width * height
        assert aspect[0] - 1e-6 <= width / height <= aspect[1] + 1e-6


def test_default_windows_keep_their_area_and_aspect() -> None:
    config = AugmentConfig.model_validate({"random_resized_crop": {"p": 1}})
    crops = np.array([p.geometry.crop for p in many(config)])
    area, aspect = crops[:, 2] * crops[:, 3], crops[:, 2] / crops[:, 3]
    assert 0.6 <= area.min() < 0.61 and 0.97 < area.max() <= 1
    assert 0.75 - 1e-9 <= aspect.min() < 0.77 and 1.3 < aspect.max() <= 4 / 3 + 1e-9
