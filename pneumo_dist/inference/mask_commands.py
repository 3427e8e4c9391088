"""The commands from stored predictions to thresholds, masks and a report. They import what they need when they run."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumo_dist.command_options import CONFIG, FOLDER, RUNS, SHARDS
from shards import console
from shards.errors import InputError
from shards.table import Shards

if TYPE_CHECKING:
    from pneumo_dist.inference.postprocess import Rule


def rule_for(config_path: Path, overrides: tuple[str, ...], runs: Path, name: str) -> "tuple[Rule, float | None]":
    """Return the rule for masks, the ensemble's own or the tuned one, and what share of films that calls positive."""
    from dataclasses import replace

    from pneumo_dist.config_ensemble import EnsembleConfig, load_either
    from pneumo_dist.inference.postprocess import Rule
    from pneumo_dist.inference.thresholds import THRESHOLDS, read_thresholds
    from pneumo_dist.metrics import Triplet

    config = load_either(config_path, overrides)
    smallest = config.smallest_part if isinstance(config, EnsembleConfig) else 0
    if isinstance(config, EnsembleConfig) and config.thresholds is not None:
        fixed = config.thresholds
        return Rule(Triplet(fixed.top, fixed.area, fixed.bottom), smallest), None
    rule, called = read_thresholds(runs / config.name / "oof" / THRESHOLDS, name)
    return (replace(rule, smallest_part=smallest) if smallest else rule), called


@click.command()
@CONFIG
@RUNS
@click.option(
    "--objective",
    "objective_text",
    default="dice",
    show_default=True,
    help="dice, dice@prevalence=P or sensitivity@specificity=S.",
)
@click.option(
    "--component-threshold",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Threshold at which the size of the smallest connected part is tuned.",
)
def tune(config_path: Path, runs: Path, objective_text: str, component_threshold: float) -> None:
    """Find the exact best thresholds on the out-of-fold predictions."""
    from pneumo_dist.config_ensemble import load_either
    from pneumo_dist.distributed import process_group
    from pneumo_dist.inference.evaluate import surface
    from pneumo_dist.inference.objective import Objective
    from pneumo_dist.inference.plots import draw_curve, draw_surface
    from pneumo_dist.inference.store import Predictions
    from pneumo_dist.inference.thresholds import (
        CURVE,
        SURFACE,
        THRESHOLDS,
        summary_lines,
        write_thresholds,
    )
    from pneumo_dist.inference.tune import film_measures, tune
    from shards.files import atomic_write

    objective = Objective.parse(objective_text)
    folder = runs / load_either(config_path).name / "oof"
    predictions = Predictions(folder / "predictions")
    with process_group(cpu=True) as ranks:
        with console.progress(len(predictions) // ranks.world if ranks.is_main else 0, "film", "tune") as bar:
            histograms, parts = film_measures(predictions, ranks, component_threshold, lambda: bar.update(1))
        if ranks.is_main:
            tuned = tune(predictions, histograms, objective, parts, component_threshold)
            write_thresholds(folder / THRESHOLDS, tuned, predictions)
            weights = objective.film_weights(histograms[:, 1].sum(-1) > 0)
            found = surface(histograms, tuned.triplet, weights)
            atomic_write(folder / SURFACE, draw_surface(found, tuned.triplet))
            assert tuned.curve is not None
            atomic_write(folder / CURVE, draw_curve(tuned.curve, component_threshold))
            print("\n".join(summary_lines(tuned)))
            print(f"thresholds: {folder / THRESHOLDS}, drawn in {folder / SURFACE} and {folder / CURVE}")


@click.command()
@CONFIG
@RUNS
@click.option(
    "--rule",
    type=click.Choice(["triplet", "components", "gate"]),
    default="triplet",
    show_default=True,
    help="What tune found: a triplet, a threshold without small parts, or the triplet with the class gate.",
)
@click.option("--triplet", type=(float, int, float), metavar="TOP AREA BOTTOM", help="Thresholds set by hand.")
@click.option("--smallest-part", type=click.IntRange(0), help="Remove parts of fewer label-grid pixels.")
@click.option("--sample-submission", type=FOLDER, help="CSV whose ids, in its order, are submitted.")
@click.option("--keep-repeats", is_flag=True, help="Write an id as often as the sample submission names it.")
@click.option("--predictions", "folder", type=FOLDER, help="Predictions.  [default: RUNS/NAME/test/predictions]")
@click.option("--out", type=FOLDER, help="The file to write.  [default: RUNS/NAME/test/submission.csv]")
def submit(
    config_path: Path,
    runs: Path,
    rule: str,
    triplet: tuple[float, int, float] | None,
    smallest_part: int | None,
    sample_submission: Path | None,
    keep_repeats: bool,
    folder: Path | None,
    out: Path | None,
) -> None:
    """Write submission.csv from the test predictions: one row per film, -1 where the mask is empty."""
    if int(os.environ.get("RANK", 0)) != 0:
        return
    from dataclasses import replace

    from pneumo_dist.config_ensemble import load_either
    from pneumo_dist.inference.postprocess import Rule
    from pneumo_dist.inference.store import Predictions
    from pneumo_dist.inference.submission import drift_warning, sample_order, submission_rows, write_submission
    from pneumo_dist.metrics import Triplet

    run = runs / load_either(config_path).name
    chosen, expected = (Rule(Triplet(*triplet)), None) if triplet else rule_for(config_path, (), runs, rule)
    top, area, bottom = chosen.triplet.top, chosen.triplet.area, chosen.triplet.bottom
    if not (0 <= top <= 1 and 0 <= bottom <= 1 and area >= 0):
        raise InputError(f"--triplet {top} {area} {bottom}: thresholds lie in 0..1, area is not negative")
    if smallest_part is not None:
        chosen = replace(chosen, smallest_part=smallest_part)
    order = sample_order(sample_submission, keep_repeats) if sample_submission else None
    rows = submission_rows(Predictions(folder or run / "test" / "predictions"), chosen)
    path = out or run / "test" / "submission.csv"
    write_submission(path, rows, order)
    ids = order or list(rows)
    warning = None if expected is None else drift_warning(rows, expected)
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{path}: {len(ids)} films, {sum(rows[i] != '-1' for i in ids)} with a pneumothorax")


@click.command()
@CONFIG
@SHARDS
@RUNS
@click.option("--against", metavar="NAME", help="Another run of RUNS: paired differences of Dice.")
@click.option(
    "--by",
    multiple=True,
    default=("view", "sex", "age"),
    show_default=True,
    metavar="COLUMN",
    help="Column of the sample table to score subgroups by; may be repeated.",
)
def report(config_path: Path, shards_path: Path, runs: Path, against: str | None, by: tuple[str, ...]) -> None:
    """Write report.html and overlays.png for the out-of-fold and holdout predictions and print the figures."""
    if int(os.environ.get("RANK", 0)) != 0:
        return
    from pneumo_dist.config_ensemble import load_either
    from pneumo_dist.inference.report import write_report

    name, shards = load_either(config_path).name, Shards(shards_path)
    with console.progress(len(shards.indices("train", "holdout")), "film", "report") as bar:
        written = write_report(shards, runs, name, against, by, on_film=lambda: bar.update(1))
    figures, score = written.figures, written.score
    print(f"out-of-fold mean Dice   {score.dice:.4f}  ({score.dice - score.always_empty:+.4f} over always empty)")
    print(f"Dice on positive films  {score.positive_dice:.4f}  ({score.positives} of {score.films} films)")
    print(f"training speed          {figures.images_per_s:.1f} films/s (median over epochs)")
    print(f"peak memory of a rank   {figures.peak_memory_mb:.0f} MiB")
    print(f"report: {written.page}\noverlays: {written.overlays}")
