"""python -m pneumo_dist: train a fold, predict, tune, submit, report. Each works alone or under torchrun."""

import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumo_dist import __version__
from pneumo_dist.config import BatchError
from pneumo_dist.config_file import LoadedConfig, dump_resolved, load_config
from shards import console
from shards.errors import InputError
from shards.table import Shards

if TYPE_CHECKING:
    from pneumo_dist.distributed import Ranks

FOLDER = click.Path(path_type=Path)
CONFIG = click.option("--config", "config_path", type=FOLDER, required=True, help="Experiment, a YAML file.")
OVERRIDES = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, as optim.lr=1e-4.")
SHARDS = click.option("--shards", "shards_path", type=FOLDER, required=True, help="Folder that 'shards build' made.")
RUNS = click.option("--runs", type=FOLDER, required=True, help="Folder of all runs.")
CPU = click.option("--cpu", is_flag=True, help="Use the CPU even where there is a GPU.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def app() -> None:
    """Distributed training and inference for pneumothorax segmentation on chest radiographs."""


@app.command()
@CONFIG
@OVERRIDES
@SHARDS
@RUNS
@CPU
@click.option("--fold", type=int, required=True, help="Fold that is validated on.")
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
    profile: bool,
    dry_run: bool,
    world_size: int | None,
    rate: float | None,
) -> int:
    """Train one fold of an experiment, stage by stage; run again to go on where it stopped."""
    config = load_config(config_path, overrides)
    shards = Shards(shards_path)
    world = world_size or int(os.environ.get("WORLD_SIZE", 1))
    plan = _plan_lines(config, shards, fold, world, rate)
    folder = runs / config.experiment.name / f"fold{fold}"
    if dry_run:
        print(dump_resolved(config), *plan, f"folder: {folder}", sep="\n")
        return console.EXIT_DONE

    from pneumo_dist.distributed import check_agreement, process_group
    from pneumo_dist.precision import configure
    from pneumo_dist.preemption import MARKER, Preempted, exit_code
    from pneumo_dist.stages import train_fold

    with process_group(cpu) as ranks:
        _plain_warnings(ranks)
        configure(config.experiment.runtime)
        config_digest = hashlib.sha256(config.experiment.model_dump_json().encode()).hexdigest()
        facts = {"code": __version__, "config": config_digest, "shards": shards.manifest["table_sha256"]}
        check_agreement(ranks, facts)
        shards = _staged(config, shards, fold, ranks)
        if ranks.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MARKER).unlink(missing_ok=True)
        try:
            train_fold(config.experiment, fold, shards, folder, ranks, dump_resolved(config), profile)
        except Preempted:
            if ranks.is_main:
                print(f"stopped by a signal, checkpoint written in {folder}; run the same command to go on")
            return exit_code()
        if ranks.is_main:
            print(f"fold {fold} of {config.experiment.name} is trained: {folder}")
    return console.EXIT_DONE


def _staged(config: LoadedConfig, shards: Shards, fold: int, ranks: "Ranks") -> Shards:
    """Return the shards to read from: copies on the node's own disk, where the config names a folder for them."""
    import numpy as np

    from pneumo_dist.data.staging import needed_bytes, stage_shards

    cache_dir = config.experiment.data.cache_dir
    if cache_dir is None:
        return shards
    always_train = any(stage.always_train for stage in config.experiment.stages)
    rows = np.concatenate(shards.fold_rows(fold, always_train))
    total = needed_bytes(shards, rows) if ranks.local_rank == 0 else 0
    with console.progress(total, "B", f"copy shards to {cache_dir}") as bar:
        return stage_shards(shards, rows, Path(cache_dir), bar.update)


def _plan_lines(config: LoadedConfig, shards: Shards, fold: int, world: int, rate: float | None) -> list[str]:
    """Check that every stage can be planned, and say what it amounts to."""
    from pneumo_dist.data.plan import EpochPlan, split_fold

    lines = []
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


@app.command("fetch-weights")
@CONFIG
@OVERRIDES
@click.option("--out", type=FOLDER, required=True, help="The file to write.")
def fetch_weights(config_path: Path, overrides: tuple[str, ...], out: Path) -> None:
    """Fetch a config's pretrained encoder weights into a file, for machines that reach no hub."""
    from pneumo_dist.models import encoder_state
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


@app.command("show-batch")
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
    import cv2

    from pneumo_dist.show_batch import show_batch
    from shards.files import atomic_write

    experiment = load_config(config_path, overrides).experiment
    chosen = experiment.stage(stage) if stage else experiment.stages[0]
    picture = show_batch(experiment, chosen, Shards(shards_path), fold, films, epochs)
    done, content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    atomic_write(out, content.tobytes())
    print(f"{out}: {films} films, {epochs} epochs")


@app.command()
@CONFIG
@OVERRIDES
@SHARDS
@RUNS
@CPU
@click.option("--split", type=click.Choice(["oof", "holdout", "test"]), default="test", show_default=True)
@click.option("--fold", "folds", type=int, multiple=True, help="Fold to predict with; may be repeated.  [default: all]")
@click.option("--stage", help="Stage whose checkpoints predict.  [default: the last]")
@click.option("--top-k", type=int, help="Checkpoints per fold, best first.  [default: the stage's top_k]")
@click.option("--hflip/--no-hflip", default=True, show_default=True, help="Average with the flipped film.")
@click.option("--block", type=int, default=64, show_default=True, help="Films per stored tar, the unit of resuming.")
def predict(
    config_path: Path,
    overrides: tuple[str, ...],
    shards_path: Path,
    runs: Path,
    cpu: bool,
    split: str,
    folds: tuple[int, ...],
    stage: str | None,
    top_k: int | None,
    hflip: bool,
    block: int,
) -> None:
    """Predict a split, averaged over checkpoints, flips and (for holdout and test) folds."""
    from pneumo_dist.distributed import process_group
    from pneumo_dist.inference.predict import PredictOptions, predict

    config = load_config(config_path, overrides)
    shards = Shards(shards_path)
    options = PredictOptions(split, folds, stage, top_k, hflip, block)
    total = len(shards.indices("train" if split == "oof" else split))
    with (
        process_group(cpu) as ranks,
        console.progress(total if ranks.is_main else 0, "film", f"predict {split}") as bar,
    ):
        out = predict(config.experiment, shards, runs / config.experiment.name, ranks, options, on_films=bar.update)
        if ranks.is_main:
            print(f"{split} predictions: {out}")


@app.command()
@CONFIG
@RUNS
@click.option(
    "--objective",
    "objective_text",
    default="dice",
    show_default=True,
    help="dice, dice@prevalence=P or sensitivity@specificity=S.",
)
def tune(config_path: Path, runs: Path, objective_text: str) -> None:
    """Find the exact best triplet of thresholds on the out-of-fold predictions."""
    from pneumo_dist.distributed import process_group
    from pneumo_dist.inference.objective import Objective
    from pneumo_dist.inference.store import Predictions
    from pneumo_dist.inference.tune import (
        SURFACE,
        THRESHOLDS,
        draw_surface,
        prediction_histograms,
        summary_lines,
        tune,
        write_thresholds,
    )
    from shards.files import atomic_write

    objective = Objective.parse(objective_text)
    run = runs / load_config(config_path).experiment.name
    predictions = Predictions(run / "oof" / "predictions")
    with process_group(cpu=True) as ranks:
        with console.progress(len(predictions) // ranks.world if ranks.is_main else 0, "film", "tune") as bar:
            histograms = prediction_histograms(predictions, ranks, on_film=lambda: bar.update(1))
        if ranks.is_main:
            tuned = tune(predictions, histograms, objective)
            write_thresholds(run / "oof" / THRESHOLDS, tuned, predictions)
            atomic_write(run / "oof" / SURFACE, draw_surface(histograms, tuned))
            print("\n".join(summary_lines(tuned)))
            print(f"thresholds: {run / 'oof' / THRESHOLDS}, drawn in {run / 'oof' / SURFACE}")


@app.command()
@CONFIG
@RUNS
@click.option("--triplet", type=(float, int, float), metavar="TOP AREA BOTTOM", help="Thresholds set by hand.")
@click.option("--smallest-part", type=click.IntRange(0), default=0, help="Remove parts of fewer label-grid pixels.")
@click.option("--sample-submission", type=FOLDER, help="CSV whose ids, in its order, are submitted.")
@click.option("--keep-repeats", is_flag=True, help="Write an id as often as the sample submission names it.")
@click.option("--out", type=FOLDER, help="The file to write.  [default: RUNS/NAME/test/submission.csv]")
def submit(
    config_path: Path,
    runs: Path,
    triplet: tuple[float, int, float] | None,
    smallest_part: int,
    sample_submission: Path | None,
    keep_repeats: bool,
    out: Path | None,
) -> None:
    """Write submission.csv from the test predictions: one row per film, -1 where the mask is empty."""
    if int(os.environ.get("RANK", 0)) != 0:
        return
    from pneumo_dist.inference.store import Predictions
    from pneumo_dist.inference.submission import drift_warning, sample_order, submission_rows, write_submission
    from pneumo_dist.inference.tune import THRESHOLDS, read_thresholds
    from pneumo_dist.metrics import Triplet

    run = runs / load_config(config_path).experiment.name
    chosen, expected = (Triplet(*triplet), None) if triplet else read_thresholds(run / "oof" / THRESHOLDS)
    if not (0 <= chosen.top <= 1 and 0 <= chosen.bottom <= 1 and chosen.area >= 0):
        raise InputError(
            f"--triplet {chosen.top} {chosen.area} {chosen.bottom}: thresholds lie in 0..1, area is not negative"
        )
    order = sample_order(sample_submission, keep_repeats) if sample_submission else None
    rows = submission_rows(Predictions(run / "test" / "predictions"), chosen, smallest_part)
    path = out or run / "test" / "submission.csv"
    write_submission(path, rows, order)
    ids = order or list(rows)
    warning = None if expected is None else drift_warning(rows, expected)
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{path}: {len(ids)} films, {sum(rows[i] != '-1' for i in ids)} with a pneumothorax")


@app.command()
@CONFIG
@SHARDS
@RUNS
def report(config_path: Path, shards_path: Path, runs: Path) -> None:
    """Write report.html and overlays.png for the out-of-fold predictions and print the figures."""
    if int(os.environ.get("RANK", 0)) != 0:
        return
    import torch

    from pneumo_dist.distributed import Ranks
    from pneumo_dist.inference.report import draw_films, read_history, run_figures, write_report
    from pneumo_dist.inference.store import Predictions
    from pneumo_dist.inference.tune import prediction_histograms, tune

    name = load_config(config_path).experiment.name
    shards, predictions = Shards(shards_path), Predictions(runs / name / "oof" / "predictions")
    histograms = prediction_histograms(predictions, Ranks(0, 1, 0, torch.device("cpu")))
    tuned, history = tune(predictions, histograms), read_history(runs / name)
    films = draw_films(shards, predictions, histograms, tuned.triplet)
    page, overlays = write_report(runs / name, name, tuned, history, films)
    figures, score = run_figures(history), tuned.score
    print(f"out-of-fold mean Dice   {score.dice:.4f}  ({score.dice - score.always_empty:+.4f} over always empty)")
    print(f"Dice on positive films  {score.positive_dice:.4f}  ({score.positives} of {score.films} films)")
    print(f"training speed          {figures.images_per_s:.1f} films/s (median over epochs)")
    print(f"peak memory of a rank   {figures.peak_memory_mb:.0f} MiB")
    print(f"report: {page}\noverlays: {overlays}")


def _plain_warnings(ranks: "Ranks") -> None:
    """Show warnings as one line, on rank 0 alone."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if ranks.is_main and issubclass(category, UserWarning):
            print(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show


if __name__ == "__main__":
    sys.exit(console.run(app, "python -m pneumo_dist"))
