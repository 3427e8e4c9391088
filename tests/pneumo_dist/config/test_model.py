"""The network: options that contradict each other, and names and widths out of bounds."""

from typing import Any

import pydantic
import pytest

from pneumo_dist.config.model import ModelConfig


@pytest.mark.parametrize(
    "values",
    [
        {"encoder_weights_file": "x.pt"},
        {"encoder_weights_sha256": "0" * 64},
        {"encoder_weights_file": "x.pt", "encoder_weights_sha256": "0" * 64, "encoder_weights": "imagenet"},
        {"encoder_weights_file": "x.pt", "encoder_weights_sha256": "0" * 63},
    ],
)
def test_weights_file_needs_a_digest_and_excludes_a_name(values: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match="encoder_weights"):
        ModelConfig.model_validate(values)


@pytest.mark.parametrize(
    "values",
    [
        {"encoder": "https://example.org/weights"},
        {"arch": "../unet"},
        {"in_channels": 2},
        {"decoder_channels": []},
        {"decoder_channels": [0]},
        {"decoder_attention_type": "other"},
        {"classification": {"dropout": 1}},
        {"arch": "fcn", "fcn": {"widths": [4, 6]}},
    ],
)
def test_values_out_of_bounds_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        ModelConfig.model_validate(values)
