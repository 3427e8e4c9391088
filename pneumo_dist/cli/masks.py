"""The commands tune, submit and report: from stored predictions to thresholds, masks and a report.

Heavy modules are imported when a command runs.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumo_dist.cli.options import CLASS_PROBABILITIES, CONFIG, FOLDER, OVERRIDES, RULE, RUNS, SHARDS, check_folder
from pneumo_dist.config.rules import RuleName
from pneumo_dist.ranks.environment import is_first, launched_rank
from shards import console
from shards.dataset.table import Shards
from shards.errors import InputError

if TYPE_CHECKING:
    from pneumo_dist.maps.store import Predictions
    from pneumo_dist.ranks.ranks import Ranks
    from pneumo_dist.scoring.masks import Rule


@click.command(short_help="Find the exact best thresholds on out-of-fold films.")
@CONFIG
@OVERRIDES
@RUNS
@click.option(
    "--objective",
    "objective_text",
    default="dice",
    show_default=True,
    help="Objective: dice, dice@prevalence=P or sensitivity@specificity=S.",
)
@click.option(
    "--component-threshold",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Threshold at which the size of the smallest component is tuned.",
)
@click.option(
    "--joint",
    is_flag=True,
    help="Also search the smallest component together with the threshold, and with the triplet: the rules "
    "threshold-components and triplet-components.",
)
@CLASS_PROBABILITIES
def tune(  # one parameter per option
    config_path: Path,
    overrides: tuple[str, ...],
    runs: Path,
    objective_text: str,
    component_threshold: float,
    joint: bool,
    classes: Path | None,
) -> None:
    """Find the exact best thresholds on the out-of-fold predictions."""
    from pneumo_dist.config.ensemble import check_finds_masks, load_either
    from pneumo_dist.maps.store import open_predictions
    from pneumo_dist.report.plots import draw_curve, draw_surface
    from pneumo_dist.thresholds.file import CURVE, SURFACE, summary_lines, write_thresholds
    from pneumo_dist.thresholds.levels import level_measures
    from pneumo_dist.thresholds.objective import Objective
    from pneumo_dist.thresholds.rules import THRESHOLDS
    from pneumo_dist.thresholds.tune import film_measures, tune
    from pneumo_dist.thresholds.worth import surface
    from shards.files import atomic_write

    objective = Objective.parse(objective_text)
    if not 0 <= component_threshold <= 1:  # click's range accepts nan
        raise InputError(f"--component-threshold {component_threshold}: give a number from 0 to 1")
    config = load_either(config_path, overrides)
    check_finds_masks(config)
    folder = runs / config.name / "oof"
    predictions = _with_classes(open_predictions(folder / "predictions"), classes)
    with _ranks() as ranks:
        share = len(predictions) // (ranks.world if ranks else 1)
        is_main = ranks is None or ranks.is_main
        with console.progress(share if is_main else 0, "film", "tune") as bar:
            histograms, components = film_measures(predictions, ranks, component_threshold, lambda: bar.update(1))
        levels = []
        if joint:
            with console.progress(share if is_main else 0, "film", "tune --joint") as bar:
                levels = level_measures(predictions, ranks, lambda: bar.update(1))
        if not is_main:
            return
        result = tune(predictions, histograms, objective, components, component_threshold, levels)
        thresholds = result.thresholds
        weights = objective.film_weights(histograms[:, 1].sum(-1) > 0)
        heat_map = draw_surface(surface(histograms, thresholds.triplet, weights), thresholds.triplet)
        assert result.curve is not None
        curve = draw_curve(result.curve, thresholds.rule("components").rule)
        atomic_write(folder / SURFACE, heat_map)
        atomic_write(folder / CURVE, curve)
        write_thresholds(folder / THRESHOLDS, result, predictions)
        print("\n".join(summary_lines(result)))
        print(f"thresholds: {folder / THRESHOLDS}, plotted in {folder / SURFACE} and {folder / CURVE}")


def _with_classes(predictions: "Predictions", classes: Path | None) -> "Predictions":
    """Return predictions with the class probabilities of a file, if there is one."""
    from pneumo_dist.maps.outside import with_outside

    return predictions if classes is None else with_outside(classes, [predictions])[0]


def _ranks() -> "AbstractContextManager[Ranks | None]":
    """Join the process group that a launcher asks for; without one, work alone and without torch."""
    if launched_rank(os.environ) is None:
        return nullcontext()
    from pneumo_dist.ranks.ranks import process_group

    return process_group(cpu=True)


@click.command(short_help="Write submission.csv from the test predictions.")
@CONFIG
@OVERRIDES
@RUNS
@RULE
@click.option("--triplet", type=(float, int, float), metavar="TOP AREA BOTTOM", help="Thresholds set by hand.")
@click.option(
    "--smallest-part", type=click.IntRange(0), help="Minimum size of a connected component, in label-grid pixels."
)
@CLASS_PROBABILITIES
@click.option("--sample-submission", type=FOLDER, help="CSV file whose ids are submitted, in its order.")
@click.option("--keep-repeats", is_flag=True, help="Write an id as often as the sample submission has it.")
@click.option(
    "--predictions", "folder", type=FOLDER, help="Folder with predictions.  [default: RUNS/NAME/test/predictions]"
)
@click.option("--out", type=FOLDER, help="File to write.  [default: RUNS/NAME/test/submission.csv]")
def submit(  # noqa: PLR0913  # one parameter per option
    config_path: Path,
    overrides: tuple[str, ...],
    runs: Path,
    rule_name: RuleName | None,
    triplet: tuple[float, int, float] | None,
    smallest_part: int | None,
    classes: Path | None,
    sample_submission: Path | None,
    keep_repeats: bool,
    folder: Path | None,
    out: Path | None,
) -> None:
    """Write submission.csv from the test predictions: one row per film, -1 for an empty mask."""
    if not is_first(os.environ):
        return
    from dataclasses import replace

    from pneumo_dist.config.ensemble import check_finds_masks, load_either
    from pneumo_dist.maps.store import open_predictions
    from pneumo_dist.output.submission import drift_warning, sample_order, submission_rows, write_submission
    from pneumo_dist.scoring.masks import Rule
    from pneumo_dist.scoring.triplet import Triplet
    from pneumo_dist.thresholds.choose import choose_rule, run_thresholds

    config = load_either(config_path, overrides)
    check_finds_masks(config)
    run = runs / config.name
    if triplet is not None:
        if rule_name is not None:
            raise InputError("give --rule or --triplet, not both")
        top, area, bottom = triplet
        if not (0 <= top <= 1 and 0 <= bottom <= 1 and area >= 0):
            raise InputError(
                f"--triplet {top} {area} {bottom}: TOP and BOTTOM must be from 0 to 1, AREA must not be negative"
            )
        rule, tuned = Rule(Triplet(top, area, bottom)), None
    else:
        rule, tuned = choose_rule(config, rule_name, lambda: run_thresholds(run))
    if smallest_part is not None and smallest_part != rule.smallest_part:
        rule, tuned = replace(rule, smallest_part=smallest_part), None
    if classes is not None and not rule.needs_class:
        raise InputError(
            f"--class-probabilities {classes}: the rule for masks uses no class probability; leave it out, or name a "
            "rule with --rule that was tuned with them"
        )
    path = out or run / "test" / "submission.csv"
    check_folder(path.parent)
    if path.is_dir():
        raise InputError(f"--out {path}: is a folder; give the file to write")
    order = sample_order(sample_submission, keep_repeats) if sample_submission else None
    predictions = _with_classes(open_predictions(folder or run / "test" / "predictions"), classes)
    with console.progress(len(predictions), "film", "submit") as bar:
        rows = submission_rows(predictions, rule, lambda: bar.update(1))
    write_submission(path, rows, order)
    ids = order or list(rows)
    warning = drift_warning(rows, _called_out_of_fold(run, rule) if tuned is None else tuned.called)
    if warning is not None:
        console.warn(warning)
    print(f"{path}: {len(ids)} films, {sum(rows[i] != '-1' for i in ids)} with a pneumothorax")


def _called_out_of_fold(run: Path, rule: "Rule") -> float | None:
    """Return the share of the run's out-of-fold films that a rule calls positive; None without such predictions."""
    from pneumo_dist.maps.store import MANIFEST, open_predictions
    from pneumo_dist.output.submission import called_share

    folder = run / "oof" / "predictions"
    if not (folder / MANIFEST).exists():
        return None
    try:
        predictions = open_predictions(folder)
        with console.progress(len(predictions), "film", "out-of-fold films") as bar:
            return called_share(predictions, rule, lambda: bar.update(1))
    except InputError as error:  # the submission is already written and does not depend on these films
        console.warn(f"not compared with the out-of-fold films: {error}")
        return None


@click.command(short_help="Write report.html, overlays.png and films.csv for stored predictions.")
@CONFIG
@OVERRIDES
@SHARDS
@RUNS
@RULE
@click.option("--against", metavar="NAME", help="Another run in RUNS, to compare Dice with film by film.")
@click.option(
    "--by",
    multiple=True,
    default=("view", "sex", "age"),
    show_default=True,
    metavar="COLUMN",
    help="Column of the sample table to score subgroups by; may be repeated.",
)
@CLASS_PROBABILITIES
@click.option(
    "--table",
    type=FOLDER,
    metavar="CSV",
    help="CSV file with a column image_id. Its other columns (site, scanner, ...) are subgroups, too.",
)
def report(  # noqa: PLR0913  # one parameter per option
    config_path: Path,
    overrides: tuple[str, ...],
    shards_path: Path,
    runs: Path,
    rule_name: RuleName | None,
    against: str | None,
    by: tuple[str, ...],
    classes: Path | None,
    table: Path | None,
) -> None:
    """Write a report of the out-of-fold and holdout predictions and print the main figures.

    report.html is the page, overlays.png shows films, and films.csv lists all of them by their image ids.
    """
    if not is_first(os.environ):
        return
    from pneumo_dist.config.ensemble import check_finds_masks, load_either
    from pneumo_dist.report.page import ReportOptions, write_report

    config, shards = load_either(config_path, overrides), Shards(shards_path)
    check_finds_masks(config)
    options = ReportOptions(against, by, table, rule_name, config, classes=classes)
    with console.progress(len(shards.indices("train", "holdout")), "film", "report") as bar:
        written = write_report(shards, runs, config.name, options, lambda: bar.update(1))
    if written.retuned is not None:
        console.warn(f"the rules were tuned again for this report, as {written.retuned}")
    figures, score = written.figures, written.score
    print(f"out-of-fold mean Dice   {score.dice:.4f}  ({score.dice - score.always_empty:+.4f} over always empty)")
    print(f"Dice on positive films  {score.positive_dice:.4f}  ({score.positives} of {score.films} films)")
    print(f"training speed          {figures.images_per_s:.1f} films/s (median over epochs)")
    print(f"peak memory of a rank   {figures.peak_memory_mb:.0f} MiB")
    print(f"report: {written.page}\noverlays: {written.overlays}\nfilms: {written.films}")
