"""Sentences for readers: each says what the rule does, and nothing that it does not do."""

import pytest

from pneumo_dist.report.words import rule_sentences
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet

START = "The network gives each pixel a probability of pneumothorax"


@pytest.mark.parametrize(
    ("rule", "pixel", "text"),
    [
        (
            Rule(Triplet(0.75, 1200, 0.3)),
            0.0005,
            f"{START}, and a film is called positive if at least 1,200 pixels (about 0.60 cm²) have one above 75.0 %. "
            "Its mask is then every pixel with a probability above 30.0 %.",
        ),
        (
            Rule(Triplet(0.5, 1, 0.5)),
            float("nan"),
            f"{START}, and a film is called positive if at least 1 pixel has one above 50.0 %. "
            "Its mask is then every pixel with a probability above 50.0 %.",
        ),
        (
            Rule(Triplet(0.5, 0, 0.5), 2500, 0.25),
            0.005,
            f"{START}. A film's mask is every pixel with a probability above 50.0 %, and a film with such a pixel is "
            "called positive. Connected parts of the mask with fewer than 2,500 pixels (about 12 cm²) are removed. "
            "A film is not called positive unless its probability as a whole is above 25.0 %.",
        ),
    ],
)
def test_a_rule_is_said_in_sentences(rule: Rule, pixel: float, text: str) -> None:
    assert rule_sentences(rule, pixel) == text
