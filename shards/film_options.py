"""Options of the commands that read new films. Imports no reader, so that other commands start quickly."""

from collections.abc import Callable
from typing import Any

import click

from shards.dicom.rules import MAX_PIXELS

# The names of all but the last are the fields of `FilmRules`.
OPTIONS = (
    click.option(
        "--any-film", is_flag=True, help="Accept lateral, multi-frame and FOR PROCESSING films and other body parts."
    ),
    click.option("--allow-burned-in", is_flag=True, help="Accept films whose tags say that text is burned in."),
    click.option(
        "--max-pixels",
        type=click.IntRange(1),
        default=MAX_PIXELS,
        show_default=True,
        help="Maximum number of pixels in a film.",
    ),
    click.option("--strict", is_flag=True, help="Reject films with a warning."),
)


def film_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
