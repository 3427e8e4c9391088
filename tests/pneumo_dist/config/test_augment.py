"""Augmentation: values that make no sense are refused."""

from typing import Any

import pydantic
import pytest

from pneumo_dist.config.augment import AugmentConfig


@pytest.mark.parametrize(
    "values",
    [
        {"hflip": 2},
        {"distortion": {"elastic": {"sigma": 1e-30}}},
        {"tone": {"gamma": [0.8, 1e9]}},
        {"distortion": {"p": 0.5, "elastic": None, "grid": None, "optical": None}},
        {"tone": {"p": 0.5, "contrast": None, "gamma": None, "brightness": None}},
        {"tone": {"gamma": [1.2, 0.8]}},
        {"noise": {"sigma": [0.2, 0.1]}},
        {"random_resized_crop": {"area": [0, 1]}},
        {"random_resized_crop": {"area": [0.9, 0.8]}},
        {"random_resized_crop": {"aspect": [2, 1]}},
        {"clahe": {"clip": 0.5}},
        {"border": "wrap"},
        {"distortion": {"elastic": {"pixels": "input", "sigma": 0.5}}},
        {"tone": {"brightness_by": "median"}},
        {"tone": {"gamma_exponent": "g/1"}},
    ],
)
def test_bad_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        AugmentConfig.model_validate(values)


def test_distortion_or_tone_without_a_kind_is_allowed_at_probability_0() -> None:
    kinds = {"elastic": None, "grid": None, "optical": None}
    assert AugmentConfig.model_validate({"distortion": {"p": 0, **kinds}}).distortion.elastic is None
    AugmentConfig.model_validate({"tone": {"p": 0, "contrast": None, "gamma": None, "brightness": None}})


def test_configs_without_the_newer_keys_keep_their_meaning() -> None:
    config = AugmentConfig.model_validate({"distortion": {"p": 0.3}})
    assert config.distortion.elastic is not None and config.distortion.elastic.pixels == "film"
    assert not config.distortion.grid_open
    assert (config.tone.brightness_by, config.tone.gamma_exponent, config.border) == ("range", "g", "constant")
