"""The options that commands share."""

from pathlib import Path

import click

from shards.console import PathType

FOLDER = PathType(path_type=Path)
CONFIG = click.option("--config", "config_path", type=FOLDER, required=True, help="Experiment, a YAML file.")
OVERRIDES = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, as optim.lr=1e-4.")
SHARDS = click.option("--shards", "shards_path", type=FOLDER, required=True, help="Folder that 'shards build' made.")
RUNS = click.option("--runs", type=FOLDER, required=True, help="Folder of all runs.")
CPU = click.option("--cpu", is_flag=True, help="Use the CPU even where there is a GPU.")
