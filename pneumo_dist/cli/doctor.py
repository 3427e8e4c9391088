"""The command doctor. It imports the checks only when it runs."""

import os
from pathlib import Path

import click

from pneumo_dist.cli.options import CONFIG_FILE, FOLDER, OVERRIDES
from pneumo_dist.ranks.environment import launched_rank
from shards import console


@click.command(short_help="Check that this node can train, and print fixes.")
@click.option(
    "--config",
    "config_path",
    type=CONFIG_FILE,
    help="YAML file of the experiment to train, or the name of a shipped one.",
)
@OVERRIDES
@click.option("--shards", "shards_path", type=FOLDER, help="Folder written by 'shards build'.")
@click.option("--runs", type=FOLDER, help="Folder of all runs.")
@click.option("--cpu", is_flag=True, help="Check for training on the CPU even if there is a GPU.")
@click.option(
    "--ranks",
    type=click.IntRange(min=1),
    help="Number of ranks on this node.  [default: torchrun's, or one per GPU]",
)
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
    """Check that this node can train, and print a fix for every problem. The exit code is 2 if training would fail.

    Run it by itself, or on every node with srun or torchrun.
    """
    from pneumo_dist.config.experiment import Experiment
    from pneumo_dist.config.load import load_config
    from pneumo_dist.config.stage import StageConfig
    from pneumo_dist.doctor.checks import DoctorOptions, examine
    from pneumo_dist.doctor.findings import json_report, text_report, would_fail

    launched = launched_rank(os.environ)
    if launched is not None and launched.local_rank:
        return console.EXIT_DONE  # the first rank on the node checks everything that its ranks share
    if config_path is None:
        experiment = Experiment(name="default", stages=(StageConfig(name="main"),))
    else:
        experiment = load_config(config_path, overrides).experiment
    job, findings = examine(DoctorOptions(experiment, config_path, shards_path, runs, cpu, ranks), os.environ)
    if with_json:
        click.echo(json_report(job.host, job.nodes, job.ranks, findings))
    else:
        options = {"config (--config)": config_path, "shards (--shards)": shards_path, "run folder (--runs)": runs}
        skipped = [name for name, path in options.items() if path is None]
        click.echo(text_report(f"doctor on {job}", findings, skipped))
    return console.EXIT_USAGE if would_fail(findings) else console.EXIT_DONE
