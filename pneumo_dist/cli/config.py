"""The commands config and init-config: the reference of a config's keys, and a first config for a dataset."""

import json
from pathlib import Path

import click

from pneumo_dist.cli.options import CPU, FOLDER, SHARDS
from shards import console
from shards.errors import InputError


@click.command(short_help="Print the JSON schema or the reference of config files.")
@click.option("--schema", "form", flag_value="schema", help="Print a JSON schema, for editors.")
@click.option("--markdown", "form", flag_value="markdown", help="Print docs/config.md.")
def config(form: str | None) -> None:
    """Print the keys of config files, with types, defaults and meanings."""
    from pneumo_dist.config.reference import json_schema, markdown

    if form is None:
        raise click.UsageError("give --schema or --markdown")
    print(json.dumps(json_schema(), indent=1) if form == "schema" else markdown())


@click.command("init-config", short_help="Write a commented config for a dataset and this machine.")
@SHARDS
@CPU
@click.option("--name", help="Name of the experiment.  [default: the name of the file]")
@click.option("--out", type=FOLDER, required=True, help="YAML file to write.")
def init_config(shards_path: Path, cpu: bool, name: str | None, out: Path) -> None:
    """Write a commented config for a dataset: image size, network and batch that fit this machine's memory.

    It is a start, not a recipe: the shipped configs have the published ones.
    """
    from pneumo_dist.doctor.first_config import first_config
    from shards.dataset.table import Shards
    from shards.files import atomic_write

    if out.exists():
        raise InputError(f"--out {out}: exists; remove it, or give another file")
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out {out}: give a file that ends with .yaml")
    atomic_write(out, first_config(Shards(shards_path), name or out.stem, cpu))
    console.say(f"{out}: check it with: pneumo-dist train --config {out} --shards {shards_path} --runs RUNS --dry-run")
