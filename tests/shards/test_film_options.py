"""The options of commands that read films are the fields of the rules for films."""

from dataclasses import asdict
from typing import Any

import click
import pytest
from click.testing import CliRunner

from shards.dicom.rules import FilmRules
from shards.film_options import film_options


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ([], {}),
        (["--any-film", "--strict"], {"any_film": True, "strict": True}),
        (["--allow-burned-in", "--max-pixels", "5"], {"allow_burned_in": True, "max_pixels": 5}),
    ],
)
def test_options_are_the_fields_of_the_rules(arguments: list[str], changes: dict[str, Any]) -> None:
    received: dict[str, Any] = {}
    command = click.command()(film_options(lambda **options: received.update(options)))
    assert CliRunner().invoke(command, arguments).exit_code == 0
    assert received == {**asdict(FilmRules()), "strict": False, **changes}


def test_a_film_has_pixels() -> None:
    command = click.command()(film_options(lambda **options: None))
    assert CliRunner().invoke(command, ["--max-pixels", "0"]).exit_code == 2
