"""Options of the commands that split a dataset: build and finalize."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from shards.build.options import BuildOptions
from shards.console import PathType

_FILE = PathType(path_type=Path)

OPTIONS = (
    click.option(
        "--folds", type=int, default=BuildOptions.folds, show_default=True, help="Number of cross-validation folds."
    ),
    click.option(
        "--holdout",
        type=float,
        default=BuildOptions.holdout,
        show_default=True,
        help="Share of the films that is never used for training, selection or tuning.",
    ),
    click.option("--seed", type=int, default=BuildOptions.seed, show_default=True, help="Seed of the folds."),
    click.option("--groups", "groups_csv", type=_FILE, help="CSV of image_id and group; replaces the patient ids."),
    click.option(
        "--folds-csv",
        type=_FILE,
        help="CSV of image_id and fold, for published folds. -1: holdout; stage_2, always_train: in every fold.",
    ),
    click.option(
        "--duplicate-distance",
        type=int,
        default=BuildOptions.duplicate_distance,
        show_default=True,
        help="Maximum number of bits (of 256) in which near-duplicates differ; -1 does not group them.",
    ),
    click.option(
        "--max-rejects", type=click.IntRange(min=0), default=0, show_default=True, help="Maximum number of rejects."
    ),
    click.option(
        "--patient-salt-file", type=_FILE, help="File with the secret that keys patient hashes.  [default: OUT.salt]"
    ),
)


def split_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
