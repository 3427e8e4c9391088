"""The commands from stored predictions to thresholds, masks and a report. They import what they need when they run."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumo_dist.cli.options import CONFIG, FOLDER, RUNS, SHARDS
from pneumo_dist.ranks.environment import is_first
from shards import console
from shards.dataset.table import Shards
from shards.errors import InputError

if TYPE_CHECKING:
    from pneumo_dist.scoring.masks import Rule

RULE = click.option(
    "--rule",
    type=click.Choice(["triplet", "components", "gate"]),
    help="What tune found, as it is: a triplet, a threshold without small parts, or the triplet with the class gate.  "
    "[default: the config's thresholds, else the triplet, without parts below the config's smallest_part]",
)


def check_folder(path: Path) -> None:
    """Raise InputError where a file stands in the place of a folder that is to be written into, or of one above it."""
    standing = next((each for each in (path, *path.parents) if each.exists()), path)
    if standing.exists() and not standing.is_dir():
        raise InputError(f"--out {path}: {standing} is a file; give a folder")


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
    from pneumo_dist.config.ensemble import load_either
    from pneumo_dist.predict.store import open_predictions
    from pneumo_dist.ranks.ranks import process_group
    from pneumo_dist.report.plots import draw_curve, draw_surface
    from pneumo_dist.thresholds.file import CURVE, SURFACE, THRESHOLDS, summary_lines, write_thresholds
    from pneumo_dist.thresholds.objective import Objective
    from pneumo_dist.thresholds.tune import film_measures, tune
    from pneumo_dist.thresholds.worth import surface
    from shards.files import atomic_write

    objective = Objective.parse(objective_text)
    if not 0 <= component_threshold <= 1:  # not a number
        raise InputError(f"--component-threshold {component_threshold}: give a number from 0 to 1")
    folder = runs / load_either(config_path).name / "oof"
    predictions = open_predictions(folder / "predictions")
    with process_group(cpu=True) as ranks:
        with console.progress(len(predictions) // ranks.world if ranks.is_main else 0, "film", "tune") as bar:
            histograms, parts = film_measures(predictions, ranks, component_threshold, lambda: bar.update(1))
        if ranks.is_main:
            tuned = tune(predictions, histograms, objective, parts, component_threshold)
            weights = objective.film_weights(histograms[:, 1].sum(-1) > 0)
            found = surface(histograms, tuned.triplet, weights)
            assert tuned.curve is not None and tuned.components is not None
            map_png, curve_png = draw_surface(found, tuned.triplet), draw_curve(tuned.curve, tuned.components.rule)
            atomic_write(folder / SURFACE, map_png)
            atomic_write(folder / CURVE, curve_png)
            write_thresholds(folder / THRESHOLDS, tuned, predictions)
            print("\n".join(summary_lines(tuned)))
            print(f"thresholds: {folder / THRESHOLDS}, drawn in {folder / SURFACE} and {folder / CURVE}")


@click.command()
@CONFIG
@RUNS
@RULE
@click.option("--triplet", type=(float, int, float), metavar="TOP AREA BOTTOM", help="Thresholds set by hand.")
@click.option("--smallest-part", type=click.IntRange(0), help="Remove parts of fewer label-grid pixels.")
@click.option("--sample-submission", type=FOLDER, help="CSV whose ids, in its order, are submitted.")
@click.option("--keep-repeats", is_flag=True, help="Write an id as often as the sample submission names it.")
@click.option("--predictions", "folder", type=FOLDER, help="Predictions.  [default: RUNS/NAME/test/predictions]")
@click.option("--out", type=FOLDER, help="The file to write.  [default: RUNS/NAME/test/submission.csv]")
def submit(
    config_path: Path,
    runs: Path,
    rule: str | None,
    triplet: tuple[float, int, float] | None,
    smallest_part: int | None,
    sample_submission: Path | None,
    keep_repeats: bool,
    folder: Path | None,
    out: Path | None,
) -> None:
    """Write submission.csv from the test predictions: one row per film, -1 where the mask is empty."""
    if not is_first(os.environ):
        return
    from dataclasses import replace

    from pneumo_dist.config.ensemble import load_either
    from pneumo_dist.output.submission import drift_warning, sample_order, submission_rows, write_submission
    from pneumo_dist.predict.store import open_predictions
    from pneumo_dist.scoring.masks import Rule
    from pneumo_dist.scoring.triplet import Triplet
    from pneumo_dist.thresholds.choose import rule_for

    config = load_either(config_path)
    run = runs / config.name
    if triplet is not None:
        if rule is not None:
            raise InputError("give --rule or --triplet, not both")
        top, area, bottom = triplet
        if not (0 <= top <= 1 and 0 <= bottom <= 1 and area >= 0):
            raise InputError(f"--triplet {top} {area} {bottom}: thresholds lie in 0..1, area is not negative")
        chosen, expected = Rule(Triplet(top, area, bottom)), None
    else:
        picked = rule_for(config, rule, run)
        chosen, expected = picked.rule, picked.called
    if smallest_part is not None and smallest_part != chosen.smallest_part:
        chosen, expected = replace(chosen, smallest_part=smallest_part), None
    path = out or run / "test" / "submission.csv"
    check_folder(path.parent)
    if path.is_dir():
        raise InputError(f"--out {path}: is a folder; give the file to write")
    order = sample_order(sample_submission, keep_repeats) if sample_submission else None
    predictions = open_predictions(folder or run / "test" / "predictions")
    with console.progress(len(predictions), "film", "submit") as bar:
        rows = submission_rows(predictions, chosen, lambda: bar.update(1))
    write_submission(path, rows, order)
    ids = order or list(rows)
    warning = drift_warning(rows, _expected_share(run, chosen) if expected is None else expected)
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{path}: {len(ids)} films, {sum(rows[i] != '-1' for i in ids)} with a pneumothorax")


def _expected_share(run: Path, rule: "Rule") -> float | None:
    """Return what share of the out-of-fold films a rule calls positive that tune did not count; None without films."""
    from pneumo_dist.output.submission import called_share
    from pneumo_dist.predict.store import MANIFEST, open_predictions

    folder = run / "oof" / "predictions"
    if not (folder / MANIFEST).exists():
        return None
    try:
        predictions = open_predictions(folder)
        with console.progress(len(predictions), "film", "out-of-fold films") as bar:
            return called_share(predictions, rule, lambda: bar.update(1))
    except InputError as error:  # the submission stands, and asks nothing of these films
        print(f"warning: not compared with the out-of-fold films: {error}", file=sys.stderr)
        return None


@click.command()
@CONFIG
@SHARDS
@RUNS
@RULE
@click.option("--against", metavar="NAME", help="Another run of RUNS: paired differences of Dice.")
@click.option(
    "--by",
    multiple=True,
    default=("view", "sex", "age"),
    show_default=True,
    metavar="COLUMN",
    help="Column of the sample table to score subgroups by; may be repeated.",
)
def report(
    config_path: Path, shards_path: Path, runs: Path, rule: str | None, against: str | None, by: tuple[str, ...]
) -> None:
    """Write report.html and overlays.png for the out-of-fold and holdout predictions and print the figures."""
    if not is_first(os.environ):
        return
    from pneumo_dist.config.ensemble import load_either
    from pneumo_dist.report.page import write_report
    from pneumo_dist.thresholds.choose import requested_rule

    config, shards = load_either(config_path), Shards(shards_path)
    wanted = requested_rule(config, rule)
    with console.progress(len(shards.indices("train", "holdout")), "film", "report") as bar:
        written = write_report(shards, runs, config.name, against, by, wanted, lambda: bar.update(1))
    if written.retuned is not None:
        print(f"warning: the rules were tuned anew for this report, as {written.retuned}", file=sys.stderr)
    figures, score = written.figures, written.score
    print(f"out-of-fold mean Dice   {score.dice:.4f}  ({score.dice - score.always_empty:+.4f} over always empty)")
    print(f"Dice on positive films  {score.positive_dice:.4f}  ({score.positives} of {score.films} films)")
    print(f"training speed          {figures.images_per_s:.1f} films/s (median over epochs)")
    print(f"peak memory of a rank   {figures.peak_memory_mb:.0f} MiB")
    print(f"report: {written.page}\noverlays: {written.overlays}")
