"""The command prune."""

from pathlib import Path

import click

from pneumo_dist.cli.options import CONFIG_FILE, FOLDER
from shards import console


@click.command(short_help="Remove checkpoints that neither predict nor train needs.")
@click.argument("runs", type=FOLDER, nargs=-1, required=True)
@click.option(
    "--config",
    "config_paths",
    type=CONFIG_FILE,
    multiple=True,
    help="YAML file of an ensemble whose checkpoints are kept too; may be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
def prune(runs: tuple[Path, ...], config_paths: tuple[Path, ...], dry_run: bool) -> None:
    """Remove checkpoints that neither predict nor train needs. RUNS are folders of runs, or of experiments in them.

    Each fold keeps what its own config predicts with and, of each stage, the newest checkpoint and the best. Nothing is
    removed if a fold is being trained, or a checkpoint that is kept is damaged.
    """
    from pneumo_dist.config.ensemble import EnsembleConfig, MemberConfig, load_either
    from pneumo_dist.predict.prune import plan_pruning, run_folders
    from pneumo_dist.predict.prune import prune as remove

    members: list[MemberConfig] = []
    for path in config_paths:
        config = load_either(path)
        members += config.members if isinstance(config, EnsembleConfig) else ()
    folders = list({folder.resolve(): folder for path in runs for folder in run_folders(path)}.values())
    plans = [plan_pruning(folder, members) for folder in folders]
    for plan in plans:
        if not dry_run:
            remove(plan)
        for file, size in plan.removed:
            print(f"{console.printable(str(file.path))}  {size} bytes")
    count, size, kept = (
        sum(len(plan.removed) for plan in plans),
        sum(plan.size for plan in plans),
        sum(len(plan.kept) for plan in plans),
    )
    verb = "would remove" if dry_run else "removed"
    print(f"{verb} {console.counted(count, 'checkpoint')}, {size} bytes ({_gib(size)}); {kept} kept")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
