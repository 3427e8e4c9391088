"""Options that several commands share, and checks of their values."""

from pathlib import Path

import click

from shards.console import PathType
from shards.errors import InputError

FOLDER = PathType(path_type=Path)
CONFIG = click.option("--config", "config_path", type=FOLDER, required=True, help="YAML file of the experiment.")
OVERRIDES = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a config key, e.g. optim.lr=1e-4."
)
SHARDS = click.option("--shards", "shards_path", type=FOLDER, required=True, help="Folder written by 'shards build'.")
RUNS = click.option("--runs", type=FOLDER, required=True, help="Folder of all runs.")
CPU = click.option("--cpu", is_flag=True, help="Use the CPU even if there is a GPU.")
RULE = click.option(
    "--rule",
    "rule_name",
    type=click.Choice(["triplet", "components", "gate"]),
    help="Rule for masks, unchanged from tune: a triplet, a fixed threshold without small components, or the triplet "
    "with the classification gate.  [default: the config's thresholds or else the triplet, without components below "
    "the config's smallest_part]",
)


def check_folder(path: Path) -> None:
    """Raise InputError if a folder cannot be created at `path` because it, or a parent, is a file."""
    existing = next((each for each in (path, *path.parents) if each.exists()), path)
    if existing.exists() and not existing.is_dir():
        raise InputError(f"--out {path}: {existing} is a file; give a folder")
