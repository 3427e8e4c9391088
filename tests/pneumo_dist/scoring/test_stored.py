"""Strict models of rules."""

import json

import pydantic
import pytest

from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.stored import RuleModel
from pneumo_dist.scoring.triplet import Triplet

STORED = {"triplet": {"top": 0.7, "area": 800, "bottom": 0.3}, "smallest_part": 40, "gate": 0.25}


def test_stored_rule_is_read_exactly() -> None:
    rule = RuleModel.model_validate_json(json.dumps(STORED)).rule()
    assert rule == Rule(Triplet(0.7, 800, 0.3), 40, 0.25) and isinstance(rule.triplet, Triplet)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("triplet", {"top": 0.7, "area": 800}),
        ("triplet", {"top": 1.1, "area": 800, "bottom": 0.3}),
        ("triplet", {"top": 0.7, "area": -1, "bottom": 0.3}),
        ("triplet", {"top": 0.7, "area": 800.0, "bottom": 0.3}),
        ("triplet", {"top": "0.7", "area": 800, "bottom": 0.3}),
        ("triplet", {"top": True, "area": 800, "bottom": 0.3}),
        ("triplet", [0.7, 800, 0.3]),
        ("smallest_part", 1.5),
        ("gate", -0.1),
        ("gate", 1.1),
    ],
)
def test_other_types_and_ranges_are_refused(key: str, value: object) -> None:
    with pytest.raises(pydantic.ValidationError):
        RuleModel.model_validate_json(json.dumps({**STORED, key: value}))


@pytest.mark.parametrize("key", STORED)
def test_every_key_is_required(key: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="Field required"):
        RuleModel.model_validate_json(json.dumps({name: value for name, value in STORED.items() if name != key}))


def test_nan_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError):
        RuleModel.model_validate_json(json.dumps({**STORED, "triplet": {**STORED["triplet"], "top": float("nan")}}))  # type: ignore[dict-item]
