"""The command line of status."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import click

from pneumo_dist.cli.options import FOLDER
from pneumo_dist.runs.status import read_status, table


@click.command()
@click.argument("runs", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
def status(runs: Path, as_json: bool) -> None:
    """Show what each fold in RUNS is doing: running, stalled, preempted, failed or done. Works from any node.

    The score is the best of the stage so far. A run that has sent no heartbeat for a minute counts as failed; one that
    sends them and has not moved for five minutes is stalled.
    """
    folds = read_status(runs, time.time())
    if as_json:
        for each in folds:
            print(json.dumps(asdict(each)))
    elif folds:
        print("\n".join(table(folds)))
    else:
        print(f"{runs}: no fold has been started")
