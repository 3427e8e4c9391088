"""The commands train, fetch-weights and show-batch."""

import os
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumo_dist.cli.options import CONFIG, CPU, FOLDER, OVERRIDES, RUNS, SHARDS
from pneumo_dist.config.load import LoadedConfig, as_trained, dump_resolved, load_config
from pneumo_dist.data.servers import start_server
from pneumo_dist.ranks.environment import launched_rank
from pneumo_dist.runs.heartbeat import hold_run_folder
from shards import console
from shards.dataset.table import Shards
from shards.errors import InputError

if TYPE_CHECKING:
    from pneumo_dist.cli.dry_run import Training
    from pneumo_dist.config.experiment import Experiment
    from pneumo_dist.ranks.ranks import Ranks
    from pneumo_dist.train.services import EndsEarly


@click.command()
@CONFIG
@OVERRIDES
@click.option("--shards", "shards_path", type=FOLDER, help="Folder that 'shards build' made.")
@RUNS
@CPU
@click.option("--fold", "single", type=int, multiple=True, help="Fold to validate on; may be repeated.")
@click.option("--folds", "listed", metavar="LIST", help="Folds to validate on: 0,2 or all.")
@click.option("--allow-empty-fold", is_flag=True, help="Train even if no film of the fold has a pneumothorax.")
@click.option("--profile", is_flag=True, help="Trace six steps of each stage on rank 0, for TensorBoard or perfetto.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the config and the steps, and train nothing.")
@click.option("--world-size", type=click.IntRange(1), help="With --dry-run: world size.  [default: torchrun's]")
@click.option("--ranks", "node_ranks", type=click.IntRange(1), help="With --dry-run: number of ranks on this node.")
@click.option("--head", metavar="HOST:PORT", help="With --dry-run: address at which several nodes meet.")
@click.option("--node", type=click.IntRange(0), help="With --dry-run: number of this node.")
@click.option("--rate", type=float, help="With --dry-run: films/s over all ranks, to estimate hours.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: print one line of JSON.")
def train(  # noqa: PLR0913  # one parameter per option
    config_path: Path,
    overrides: tuple[str, ...],
    shards_path: Path | None,
    runs: Path,
    cpu: bool,
    single: tuple[int, ...],
    listed: str | None,
    allow_empty_fold: bool,
    profile: bool,
    dry_run: bool,
    world_size: int | None,
    node_ranks: int | None,
    head: str | None,
    node: int | None,
    rate: float | None,
    as_json: bool,
) -> int:
    """Train folds of an experiment, one after the other. Run the same command again to resume.

    With --dry-run and without --shards only the config is checked.
    """
    config, launched = load_config(config_path, overrides), launched_rank(os.environ)
    folds = chosen_folds(single, listed, shards_path)
    if not dry_run:
        start_server(config.experiment.data.loader)  # before the imports that take seconds

    from pneumo_dist.cli.dry_run import Training, check_training, facts_of, print_training, training_findings, warn

    if dry_run:
        world = world_size or (launched.world if launched else None)
        meeting = (head, node or 0) if head is not None else None
        training = Training(config, shards_path, runs, folds, cpu, allow_empty_fold, world, node_ranks, meeting)
        print_training(training, training_findings(training), rate, as_json)
        return console.EXIT_DONE
    if any(option is not None for option in (world_size, node_ranks, head, node, rate)) or as_json:
        raise click.UsageError("--world-size, --ranks, --head, --node, --rate and --json go with --dry-run")
    if shards_path is None or not folds:
        raise click.UsageError("give --shards, and --fold or --folds")
    world, local_world = (launched.world, launched.local_world or 1) if launched else (1, 1)
    training = Training(config, shards_path, runs, folds, cpu, allow_empty_fold, world, local_world)
    if launched is None:
        warn(check_training(training))

    from pneumo_dist.ranks.precision import configure
    from pneumo_dist.ranks.ranks import check_agreement, on_rank_0, process_group
    from pneumo_dist.ranks.stop import Preempted, exit_code
    from pneumo_dist.ranks.watchdog import Limits

    shards = Shards(shards_path)
    runtime = config.experiment.runtime

    with process_group(cpu, Limits(runtime.start_minutes, runtime.watchdog_minutes)) as ranks:
        configure(runtime)
        check_agreement(ranks, facts_of(config, shards))
        if launched is not None:
            messages = on_rank_0(ranks, lambda: check_training(training))
            warn(messages if ranks.is_main else ())
        for fold in folds:
            try:
                train_one(training, shards, fold, ranks, profile)
            except Preempted:
                if ranks.is_main:
                    folder = training.folder(fold)
                    console.say(f"stopped by a signal, checkpoint written in {folder}; run the same command to resume")
                return exit_code()
    return console.EXIT_DONE


def train_one(
    training: "Training",
    shards: Shards,
    fold: int,
    ranks: "Ranks",
    profile: bool = False,
    ends_early: "EndsEarly | None" = None,
) -> None:
    """Train a fold in its folder, or resume it; other runs keep out meanwhile.

    Raises Preempted if a signal or `ends_early` stopped it, and otherwise as `train_fold` does.
    """
    from pneumo_dist.cli.dry_run import facts_of
    from pneumo_dist.network.weights import weights_line
    from pneumo_dist.ranks.stop import MARKER
    from pneumo_dist.runs.fold_run import FoldRun, checkpoints_of
    from pneumo_dist.train.fold import train_fold
    from pneumo_dist.train.services import never

    config, folder = training.config, training.folder(fold)
    with hold_run_folder(folder, ranks, facts_of(config, shards)) as heartbeat:
        if ranks.is_main:
            (folder / MARKER).unlink(missing_ok=True)
            is_new = not checkpoints_of(folder, config.experiment.stages[0].name).files()
            if is_new:
                print(weights_line(config.experiment), flush=True)
        run = FoldRun(config.experiment, fold, _local_shards(config, shards, fold, ranks), folder, ranks)
        resolved = partial(_resolved, config)
        train_fold(run, resolved, heartbeat, profile, ends_early or never)
    if ranks.is_main:
        console.say(f"fold {fold} of {config.experiment.name} is trained: {folder}")


def _resolved(config: LoadedConfig, trained: "Experiment") -> str:
    return dump_resolved(as_trained(config, trained))


def chosen_folds(single: Sequence[int], listed: str | None, shards_path: Path | None) -> tuple[int, ...]:
    """Return the folds of --fold and --folds, each once, in the order given. `all` is every fold of the shards.

    Raises InputError if the list is neither `all` nor numbers with commas, or `all` is given without shards.
    """
    if listed is None:
        return tuple(dict.fromkeys(single))
    if listed == "all":
        if shards_path is None:
            raise InputError("--folds all needs --shards")
        with closing(Shards(shards_path)) as shards:
            return tuple(dict.fromkeys([*single, *shards.folds()]))
    names = listed.split(",")
    # `int` also reads digits of other alphabets, signs, spaces and underscores.
    if not all(name.isascii() and name.isdigit() for name in names):
        raise InputError(f"--folds {listed}: give all, or numbers with commas, such as 0,2")
    return tuple(dict.fromkeys([*single, *map(int, names)]))


def _local_shards(config: LoadedConfig, shards: Shards, fold: int, ranks: "Ranks") -> Shards:
    """Return the shards to read: copies on the node's own disk if the config sets data.cache_dir."""
    import numpy as np

    from pneumo_dist.data.local_copy import copy_shards_locally, needed_bytes
    from pneumo_dist.ranks.watchdog import START

    cache_dir = config.experiment.data.cache_dir
    if cache_dir is None:
        return shards
    always_train = any(stage.always_train for stage in config.experiment.stages)
    rows = np.concatenate(shards.fold_rows(fold, always_train))
    total = needed_bytes(shards, rows) if ranks.local_rank == 0 else 0
    with console.progress(total, "B", f"copy shards to {cache_dir}") as bar:

        def copied(count: int) -> None:
            ranks.beat(START)
            bar.update(count)

        def waits(who: str) -> None:
            if ranks.local_rank == 0:
                print(f"waiting for {who}, which copies shards to {cache_dir}", file=sys.stderr, flush=True)

        return copy_shards_locally(shards, rows, Path(cache_dir), copied, waits)


@click.command("fetch-weights", short_help="Fetch a config's pretrained encoder weights into a file.")
@CONFIG
@OVERRIDES
@click.option("--out", type=FOLDER, required=True, help="Path of the file to write.")
def fetch_weights(config_path: Path, overrides: tuple[str, ...], out: Path) -> None:
    """Fetch a config's pretrained encoder weights into a file, for machines without access to a hub."""
    from pneumo_dist.network.build import encoder_state
    from shards.files import atomic_write, sha256_file

    model = load_config(config_path, overrides).experiment.model
    if model.encoder_weights is None:
        raise InputError(
            f"{config_path}: model.encoder_weights is not set; set it, as in model.encoder_weights=imagenet"
        )
    atomic_write(out, encoder_state(model))
    print(f"{out}: {model.encoder_weights} weights of {model.encoder}; train with")
    print(
        f"--set model.encoder_weights=null --set model.encoder_weights_file={out} "
        f"--set model.encoder_weights_sha256={sha256_file(out)}"
    )


@click.command("show-batch", short_help="Draw the network's input: films with their masks.")
@CONFIG
@OVERRIDES
@SHARDS
@click.option("--fold", type=int, default=0, show_default=True, help="Fold whose training films are drawn.")
@click.option("--stage", help="Stage whose input is drawn.  [default: the first]")
@click.option("--films", type=int, default=4, show_default=True, help="Number of films, one per row.")
@click.option("--epochs", type=int, default=5, show_default=True, help="Number of epochs, one per column.")
@click.option("--out", type=FOLDER, required=True, help="Path of the PNG to write.")
def show_batch_command(  # noqa: PLR0913  # one parameter per option
    config_path: Path,
    overrides: tuple[str, ...],
    shards_path: Path,
    fold: int,
    stage: str | None,
    films: int,
    epochs: int,
    out: Path,
) -> None:
    """Draw the network's input: training films in several epochs, with the outlines of their masks."""
    from pneumo_dist.data.preview import show_batch
    from shards.drawing import encode_image
    from shards.files import atomic_write

    experiment = load_config(config_path, overrides).experiment
    chosen = experiment.stage(stage) if stage else experiment.stages[0]
    atomic_write(out, encode_image(show_batch(experiment, chosen, Shards(shards_path), fold, films, epochs)))
    print(f"{out}: {films} films, {epochs} epochs")
