"""The loss: values that make no sense are refused."""

import math
from typing import Any

import pydantic
import pytest

from pneumo_dist.config.loss import TERMS, LossConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict.fromkeys(TERMS, 0), "at least one loss weight must be above 0"),
        ({"dice_scope": "global", "dice_over": "image"}, "dice_scope: global needs dice_over: batch"),
        ({"bce": 0, "dice": 0, "focal": 0}, "at least one loss weight must be above 0"),
        ({"lovasz": -1}, "greater than or equal to 0"),
        ({"dice_epsilon": 0}, "greater than or equal to 0.000000000001"),
        ({"bce": math.nan}, "a finite number"),
        ({"bce": math.inf}, "a finite number"),
        ({"dice_form": "square"}, "'linear' or 'log'"),
    ],
)
def test_bad_options_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        LossConfig.model_validate(values)
