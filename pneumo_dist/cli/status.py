"""The command status."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import click

from pneumo_dist.cli.options import FOLDER
from pneumo_dist.runs.status import read_status, table


@click.command(short_help="Show the state of each fold in RUNS.")
@click.argument("runs", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per fold.")
def status(runs: Path, as_json: bool) -> None:
    """Show the state of each fold in RUNS: running, stalled, preempted, failed or done. Works from any node.

    The score is the best of the current stage. A run without a heartbeat for one minute counts as failed. A run with
    heartbeats but no progress for five minutes counts as stalled.
    """
    folds = read_status(runs, time.time())
    if as_json:
        for fold in folds:
            print(json.dumps(asdict(fold)))
    elif folds:
        print("\n".join(table(folds)))
    else:
        print(f"{runs}: no fold has been started")
