"""The options of every command that reads new films: which of them it takes."""

from collections.abc import Callable
from typing import Any

import click

from shards.dicom.rules import MAX_PIXELS

RULES = (
    click.option(
        "--any-film", is_flag=True, help="Take lateral, multi-frame, FOR PROCESSING and other body parts' films."
    ),
    click.option("--allow-burned-in", is_flag=True, help="Take films whose tags say that text is burned into them."),
    click.option(
        "--max-pixels",
        type=click.IntRange(1),
        default=MAX_PIXELS,
        show_default=True,
        help="Pixels of the largest film.",
    ),
)
STRICT = click.option("--strict", is_flag=True, help="Refuse films that have a warning.")


def film_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; those of RULES are the fields of `FilmRules`."""
    for option in reversed((*RULES, STRICT)):
        command = option(command)
    return command
