"""The command line of doctor; what it checks with is imported when it runs."""

import os
from pathlib import Path

import click

from pneumo_dist.cli.options import FOLDER, OVERRIDES
from pneumo_dist.ranks.environment import launched_rank
from shards import console


@click.command()
@click.option("--config", "config_path", type=FOLDER, help="Experiment that is to train, a YAML file.")
@OVERRIDES
@click.option("--shards", "shards_path", type=FOLDER, help="Folder that 'shards build' made.")
@click.option("--runs", type=FOLDER, help="Folder of all runs.")
@click.option("--cpu", is_flag=True, help="Training is to use the CPU even where there is a GPU.")
@click.option("--ranks", type=click.IntRange(min=1), help="Ranks on this node.  [default: torchrun's, or one per GPU]")
@click.option("--json", "with_json", is_flag=True, help="Print one line of JSON.")
def doctor(
    config_path: Path | None,
    overrides: tuple[str, ...],
    shards_path: Path | None,
    runs: Path | None,
    cpu: bool,
    ranks: int | None,
    with_json: bool,
) -> int:
    """Look for what this node lacks for training, with the mend for each; exit code 2 where training would fail.

    Works alone, and on each node under srun or torchrun.
    """
    from pneumo_dist.config.experiment import Experiment, StageConfig
    from pneumo_dist.config.load import load_config
    from pneumo_dist.doctor.checks import DoctorOptions, examine
    from pneumo_dist.doctor.findings import json_report, text_report, would_fail

    place = launched_rank(os.environ)
    if place is not None and place.local_rank:
        return console.EXIT_DONE  # the node's first rank looks at all that its ranks share
    if config_path is None:
        experiment = Experiment(name="default", stages=(StageConfig(name="main"),))
    else:
        experiment = load_config(config_path, overrides).experiment
    job, findings = examine(DoctorOptions(experiment, config_path, shards_path, runs, cpu, ranks), os.environ)
    if with_json:
        click.echo(json_report(job.host, job.nodes, job.ranks, findings))
    else:
        given = {"the config's own demands (--config)": config_path, "shards (--shards)": shards_path}
        skipped = [name for name, value in {**given, "run folder (--runs)": runs}.items() if value is None]
        click.echo(text_report(f"doctor on {job}", findings, skipped))
    return console.EXIT_USAGE if would_fail(findings) else console.EXIT_DONE
