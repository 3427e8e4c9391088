"""Options that several commands share, and checks of their values."""

import difflib
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from pneumo_dist.config.rules import RULES
from pneumo_dist.config.shipped import shipped_configs
from shards.console import PathType
from shards.errors import InputError


class ConfigPath(PathType):
    """A YAML file, or the name of a shipped config such as `seunet`. A file of that name comes first."""

    name = "config"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Path:
        """Return the path of a file. A path that does not exist is returned as it was written."""
        path = Path(super().convert(value, param, context))
        is_name = len(path.parts) == 1 and not path.suffix
        if not is_name or path.is_file():
            return path
        configs = shipped_configs()
        if path.name not in configs:
            near = difflib.get_close_matches(path.name, configs, n=1)
            fix = f"did you mean {near[0]}?" if near else f"give a YAML file or one of: {', '.join(configs)}"
            self.fail(f"{path}: no such config; {fix}", param, context)
        return configs[path.name]

    def shell_complete(self, context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the names of shipped configs, and paths if none fits."""
        names = [CompletionItem(name) for name in shipped_configs() if name.startswith(incomplete)]
        return names or super().shell_complete(context, param, incomplete)


FOLDER = PathType(path_type=Path)
CONFIG_FILE = ConfigPath(path_type=Path)
CONFIG = click.option(
    "--config",
    "config_path",
    type=CONFIG_FILE,
    required=True,
    help="YAML file of the experiment, or the name of a shipped one, e.g. seunet.",
)
OVERRIDES = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a config key, e.g. optim.lr=1e-4."
)
SHARDS = click.option("--shards", "shards_path", type=FOLDER, required=True, help="Folder written by 'shards build'.")
RUNS = click.option("--runs", type=FOLDER, required=True, help="Folder of all runs.")
CPU = click.option("--cpu", is_flag=True, help="Use the CPU even if there is a GPU.")
CLASS_PROBABILITIES = click.option(
    "--class-probabilities",
    "classes",
    type=FOLDER,
    metavar="CSV",
    help="CSV file (image_id, probability) with class probabilities to use instead of the networks'.",
)
RULE = click.option(
    "--rule",
    "rule_name",
    type=click.Choice(list(RULES)),
    help="Rule for masks, unchanged from tune: a triplet, a threshold or the triplet without small components, the "
    "triplet with the classification gate, or a threshold with the stacked gate.  [default: the config's thresholds "
    "or else the triplet, without components below the config's smallest_part]",
)


def check_folder(path: Path) -> None:
    """Raise InputError if a folder cannot be created at `path` because it, or a parent, is a file."""
    existing = next((each for each in (path, *path.parents) if each.exists()), path)
    if existing.exists() and not existing.is_dir():
        raise InputError(f"--out {path}: {existing} is a file; give a folder")
