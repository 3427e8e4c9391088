"""train, and what is done before it: fetch-weights and show-batch."""

import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumo_dist import __version__
from pneumo_dist.cli.options import CONFIG, CPU, FOLDER, OVERRIDES, RUNS, SHARDS
from pneumo_dist.config.experiment import BatchError, Experiment
from pneumo_dist.config.load import LoadedConfig, dump_resolved, load_config, told_as
from pneumo_dist.runs.heartbeat import is_finished, running
from pneumo_dist.source import source_digest
from shards import console
from shards.dataset.table import Shards
from shards.errors import InputError

if TYPE_CHECKING:
    from pneumo_dist.ranks.ranks import Ranks


@click.command()
@CONFIG
@OVERRIDES
@SHARDS
@RUNS
@CPU
@click.option("--fold", type=int, required=True, help="Fold that is validated on.")
@click.option("--allow-empty-fold", is_flag=True, help="Train although no film of the fold has a pneumothorax.")
@click.option("--profile", is_flag=True, help="Trace six steps of each stage on rank 0, for TensorBoard or perfetto.")
@click.option("--dry-run", is_flag=True, help="Print the resolved config and the steps per stage, train nothing.")
@click.option("--world-size", type=int, help="With --dry-run: ranks to plan for.  [default: those of torchrun]")
@click.option("--rate", type=float, help="With --dry-run: films/s over all ranks, to print the hours.")
def train(
    config_path: Path,
    overrides: tuple[str, ...],
    shards_path: Path,
    runs: Path,
    cpu: bool,
    fold: int,
    allow_empty_fold: bool,
    profile: bool,
    dry_run: bool,
    world_size: int | None,
    rate: float | None,
) -> int:
    """Train one fold of an experiment, stage by stage; run again to go on where it stopped."""
    from pneumo_dist.data.plan import check_validation

    config = load_config(config_path, overrides)
    shards = Shards(shards_path)
    world = world_size or int(os.environ.get("WORLD_SIZE", 1))
    plan = _plan_lines(config, shards, fold, world, rate)
    if not allow_empty_fold:
        check_validation(shards, fold)
    folder = runs / config.experiment.name / f"fold{fold}"
    facts = {
        "code": f"{__version__}, source {source_digest()}",
        "config": hashlib.sha256(config.experiment.model_dump_json().encode()).hexdigest(),
        "shards": shards.manifest["table_sha256"],
    }
    if dry_run:
        stages = [stage.name for stage in config.experiment.stages]
        is_done = is_finished(folder, {name: facts[name] for name in ("config", "shards")}, stages)
        state = "done" if is_done else "to be trained"
        print(dump_resolved(config), *plan, f"folder: {folder}", f"state: {state}", sep="\n")
        return console.EXIT_DONE

    from pneumo_dist.ranks.precision import configure
    from pneumo_dist.ranks.ranks import check_agreement, process_group
    from pneumo_dist.ranks.stop import MARKER, Preempted, exit_code
    from pneumo_dist.ranks.watchdog import Limits
    from pneumo_dist.train.fold import train_fold

    runtime = config.experiment.runtime
    with process_group(cpu, Limits(runtime.start_minutes, runtime.watchdog_minutes)) as ranks:
        _plain_warnings(ranks)
        configure(runtime)
        check_agreement(ranks, facts)
        try:
            with running(folder, ranks, facts) as heartbeat:
                if ranks.is_main:
                    (folder / MARKER).unlink(missing_ok=True)
                shards = _staged(config, shards, fold, ranks)

                def resolved(as_ran: Experiment) -> str:
                    return dump_resolved(told_as(config, as_ran))

                train_fold(config.experiment, fold, shards, folder, ranks, resolved, profile, heartbeat)
        except Preempted:
            if ranks.is_main:
                console.say(f"stopped by a signal, checkpoint written in {folder}; run the same command to go on")
            return exit_code()
        if ranks.is_main:
            console.say(f"fold {fold} of {config.experiment.name} is trained: {folder}")
    return console.EXIT_DONE


def _staged(config: LoadedConfig, shards: Shards, fold: int, ranks: "Ranks") -> Shards:
    """Return the shards to read from: copies on the node's own disk, where the config names a folder for them."""
    import numpy as np

    from pneumo_dist.data.local_copy import needed_bytes, stage_shards
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

        return stage_shards(shards, rows, Path(cache_dir), copied)


def _plan_lines(config: LoadedConfig, shards: Shards, fold: int, world: int, rate: float | None) -> list[str]:
    """Check that every stage can be planned, and say what it amounts to."""
    from pneumo_dist.data.plan import EpochPlan, split_fold

    _, validation = shards.fold_rows(fold, always_train=False)
    positives = int(shards.column("has_mask")[validation].sum())
    lines = [f"validation: {len(validation)} films, {positives} of them with a pneumothorax"]
    for stage in config.experiment.stages:
        plan = EpochPlan(split_fold(shards, fold, stage.always_train), stage, config.experiment.seed, world)
        last = stage.epochs - 1
        try:
            steps = f"{_ends(plan.steps, last)} steps x {stage.epochs} epochs, accumulation {plan.accumulation}"
        except BatchError as error:
            raise InputError(f"{config.path}: {error}") from None
        hours = f", {plan.total_steps * stage.global_batch / rate / 3600:.2f} h" if rate else ""
        lines.append(f"stage {stage.name}: {_ends(plan.length, last)} films an epoch, {steps} on {world} ranks{hours}")
    return lines


def _ends(count: Callable[[int], int], last: int) -> str:
    """Return a count of the first epoch, and of the last where it differs."""
    first, final = count(0), count(last)
    return str(first) if first == final else f"{first} to {final}"


def _plain_warnings(ranks: "Ranks") -> None:
    """Show warnings as one line, on rank 0 alone."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if ranks.is_main and issubclass(category, UserWarning):
            print(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show


@click.command("fetch-weights")
@CONFIG
@OVERRIDES
@click.option("--out", type=FOLDER, required=True, help="The file to write.")
def fetch_weights(config_path: Path, overrides: tuple[str, ...], out: Path) -> None:
    """Fetch a config's pretrained encoder weights into a file, for machines that reach no hub."""
    from pneumo_dist.network.build import encoder_state
    from shards.files import atomic_write, sha256_file

    model = load_config(config_path, overrides).experiment.model
    if model.encoder_weights is None:
        raise InputError(
            f"{config_path}: model.encoder_weights names none; set it, as in model.encoder_weights=imagenet"
        )
    atomic_write(out, encoder_state(model))
    print(f"{out}: {model.encoder_weights} weights of {model.encoder}; train with")
    print(
        f"--set model.encoder_weights=null --set model.encoder_weights_file={out} "
        f"--set model.encoder_weights_sha256={sha256_file(out)}"
    )


@click.command("show-batch")
@CONFIG
@OVERRIDES
@SHARDS
@click.option("--fold", type=int, default=0, show_default=True, help="Fold whose training films are shown.")
@click.option("--stage", help="Stage whose input is shown.  [default: the first]")
@click.option("--films", type=int, default=4, show_default=True, help="Films, one a row.")
@click.option("--epochs", type=int, default=5, show_default=True, help="Epochs, side by side.")
@click.option("--out", type=FOLDER, required=True, help="The PNG to write.")
def show_batch_command(
    config_path: Path,
    overrides: tuple[str, ...],
    shards_path: Path,
    fold: int,
    stage: str | None,
    films: int,
    epochs: int,
    out: Path,
) -> None:
    """Draw what the network sees: training films with their mask's outline, several epochs of each."""
    from pneumo_dist.data.preview import show_batch
    from shards.drawing import encode
    from shards.files import atomic_write

    experiment = load_config(config_path, overrides).experiment
    chosen = experiment.stage(stage) if stage else experiment.stages[0]
    atomic_write(out, encode(show_batch(experiment, chosen, Shards(shards_path), fold, films, epochs)))
    print(f"{out}: {films} films, {epochs} epochs")
