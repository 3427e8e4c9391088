"""Names of the rules for masks."""

from typing import get_args

from pneumo_dist.config.rules import RULES, RuleName


def test_every_rule_has_a_description_of_its_own() -> None:
    assert tuple(RULES) == get_args(RuleName)
    assert len(set(RULES.values())) == len(RULES)
