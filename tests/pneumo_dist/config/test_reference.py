"""The reference of the config's keys: the page is up to date, and the schema accepts what the loader accepts."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
import yaml
from pydantic import Field

from pneumo_dist.cli.app import app
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.reference import Key, json_schema, keys_of, markdown, set_by
from pneumo_dist.config.schema import Count, Schema, Side
from pneumo_dist.config.shipped import shipped_configs
from pneumo_dist.config.stage import StageConfig
from shards.console import EXIT_DONE, run

PAGE = Path(__file__).parents[3] / "docs" / "config.md"


class Inner(Schema):
    """A part."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """A share."""


class Outer(Schema):
    """A config."""

    name: str
    """A name
    on two lines."""
    side: Side | None = None
    """A side."""
    kinds: tuple[Literal["a", "b"], ...] = ("a",)
    """Kinds."""
    count: Count = 3
    """A count."""
    inner: Inner = Inner()
    """Always there."""
    other: Inner | None = None
    """Not always."""


def test_keys_have_type_bounds_default_unit_and_meaning() -> None:
    assert list(keys_of(Outer)) == [
        Key("name", "text", "", "", "A name on two lines."),
        Key("side", "whole number, from 32 to 8192, multiple of 32, or null", "null", "px", "A side."),
        Key("kinds", "list, each: a / b", "[a]", "", "Kinds."),
        Key("count", "whole number, from 1", "3", "", "A count."),
        Key("inner.share", "number, above 0 below 1", "0.25", "", "A share."),
        Key("other", "mapping, or null", "null", "", "Not always."),
        Key("other.share", "number, above 0 below 1", "0.25", "", "A share."),
    ]


def test_every_key_has_a_meaning() -> None:
    keys = [*keys_of(Experiment), *keys_of(StageConfig)]
    assert len(keys) > 100 and not [key.name for key in keys if not key.meaning]


def test_shipped_configs_that_set_a_key_are_named() -> None:
    keys = {key.name: key for key in keys_of(StageConfig)}
    users = set_by(keys)
    assert users["optim.swa_epochs"] == []
    assert users["loss.dice_form"] == ["recipe_b"]
    assert "demo" in users["schedule.min_lr"]


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text() == markdown() + "\n", "run python -m pneumo_dist config --markdown > docs/config.md"


def test_commands_print_the_page_and_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, "pneumo-dist", ["config", "--markdown"]) == EXIT_DONE
    assert capsys.readouterr().out == PAGE.read_text()
    assert run(app, "pneumo-dist", ["config", "--schema"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(json_schema()))


@pytest.fixture(scope="module")
def schema() -> Any:
    return jsonschema.Draft202012Validator(json.loads(json.dumps(json_schema())))


@pytest.mark.parametrize("name", shipped_configs())
def test_schema_accepts_every_shipped_file(schema: Any, name: str) -> None:
    schema.validate(yaml.safe_load(shipped_configs()[name].read_text()))


@pytest.mark.parametrize(
    "text",
    [
        "optim: {lrr: 1}",
        "epochs: 0",
        "stages: [{name: a, optim: {lr: -1}}]",
        "stages: [{epochs: 3}]",
        "stages: {main: {epoch: 3}}",
        "members: [{experiment: a, weigth: 1}]\nname: x",
        "members: [{experiment: a}]",
        "nmae: x",
    ],
)
def test_schema_refuses_wrong_keys_and_values(schema: Any, text: str) -> None:
    assert not schema.is_valid(yaml.safe_load(text))
