"""The command compare, which shows several runs in one table."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumo_dist.cli.options import FOLDER
from pneumo_dist.ranks.environment import is_first
from shards import console
from shards.errors import InputError

if TYPE_CHECKING:
    from pneumo_dist.report.compare_rules import ComparedRule


@click.command(short_help="Compare runs: scores, cost and paired differences.")
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--rule",
    type=click.Choice(["triplet", "stacking"]),
    default="triplet",
    show_default=True,
    help="Tuned rule for masks under which all runs are scored.",
)
@click.option("--csv", "csv_path", type=FOLDER, help="CSV file to write the table to.")
@click.option("--html", "html_path", type=FOLDER, help="HTML page to write the table to.")
def compare(runs: tuple[Path, ...], rule: "ComparedRule", csv_path: Path | None, html_path: Path | None) -> None:
    """Compare experiments and ensembles, each given by its folder in RUNS; the folder of all runs compares them all.

    Differences are from the first run that has out-of-fold predictions. A run that cannot be compared gets a line
    with the reason.
    """
    if not is_first(os.environ):
        return
    from pneumo_dist.report.compare import compare, run_folders
    from pneumo_dist.report.compare_page import as_csv, as_html, lines
    from shards.files import atomic_write

    for option, path in (("--csv", csv_path), ("--html", html_path)):
        if path is not None and path.is_dir():
            raise InputError(f"{option} {path}: is a folder; give the file to write")
    folders = run_folders(runs)
    with console.progress(0, "film", "compare") as bar:
        compared = compare(folders, lambda: bar.update(1), rule)
    print("\n".join(lines(compared)))
    for path, content in ((csv_path, as_csv), (html_path, partial(as_html, rule=rule))):
        if path is not None:
            atomic_write(path, content(compared))
            print(f"comparison: {path}")
