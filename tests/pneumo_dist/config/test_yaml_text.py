"""YAML that expands to more than it shows, and text that is not YAML."""

import time
from itertools import pairwise

import pytest

from pneumo_dist.config.yaml_text import BadYaml, parse_yaml

LETTERS = "abcdefghi"
LISTS = "a: &a [1, 2]\n" + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise(LETTERS))
CHAIN = "a0: &a0 [1]\n" + "".join(f"a{number}: &a{number} [*a{number - 1}]\n" for number in range(1, 100))


def test_values_and_aliases_are_those_of_yaml() -> None:
    assert parse_yaml("a: &a {x: 1, y: [true, 1.5]}\nb: *a\nc: {<<: *a, x: 2}") == {
        "a": {"x": 1, "y": [True, 1.5]},
        "b": {"x": 1, "y": [True, 1.5]},
        "c": {"x": 2, "y": [True, 1.5]},
    }
    assert parse_yaml("") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LISTS, "100,000 values"),
        (LISTS.replace("[*", "{<<: [*").replace("]\n", "]}\n").replace("&a [1, 2]}", "&a {k: 1}"), "100,000 values"),
        ("[" * 60 + "]" * 60, "50 levels"),
        ("[" * 100_000, "50 levels"),
        (CHAIN, "50 levels"),
        ("a: &a [*a]", "50 levels"),
        ("#" * (5 << 20), "characters"),
        ("a: 2024-99-99", "not valid YAML: month"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: !!int x", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: [", "not valid YAML"),
        ("[" + "a," * 1_900_000 + "]", "100,000 values"),
        ("a: 0x" + "f" * 5000, "more than 64 bits"),
        ("a: " + ":".join(["1"] * 5000), "more than 64 bits"),
    ],
    ids=range(15),
)
def test_other_texts_are_refused_quickly(text: str, reason: str) -> None:
    start = time.monotonic()
    with pytest.raises(BadYaml, match=reason):
        parse_yaml(text)
    assert time.monotonic() - start < 60, "expanded before it was refused"


def test_large_numbers_of_64_bits_are_read() -> None:
    assert parse_yaml("[9223372036854775807, -9223372036854775808, 0x7fffffffffffffff]") == [
        2**63 - 1,
        -(2**63),
        2**63 - 1,
    ]
