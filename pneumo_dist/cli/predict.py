"""The commands predict, average and segment, which run networks. Heavy modules are imported when a command runs."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pneumo_dist.cli.options import CONFIG_FILE, CPU, FOLDER, OVERRIDES, RULE, RUNS, check_folder
from pneumo_dist.config.rules import RuleName
from pneumo_dist.ranks.environment import launched_rank
from shards import console
from shards.dataset.table import Shards
from shards.dicom.rules import FilmRules
from shards.errors import InputError
from shards.film_options import film_options

if TYPE_CHECKING:
    from pneumo_dist.predict.ensemble import Ensemble
    from pneumo_dist.ranks.ranks import Ranks

ENSEMBLE = click.option(
    "--config",
    "config_path",
    type=CONFIG_FILE,
    help="YAML file of an experiment or an ensemble, or the name of a shipped one.",
)


@click.command()
@ENSEMBLE
@OVERRIDES
@click.option("--bundle", type=FOLDER, help="Bundle written by 'average --bundle', instead of --config and --runs.")
@click.option("--shards", "shards_path", type=FOLDER, help="Folder written by 'shards build'.")
@click.option("--dicom", "dicom_dir", type=FOLDER, help="Folder with new DICOM films, instead of --shards.")
@film_options
@click.option("--runs", type=FOLDER, help="Folder of all runs.")
@CPU
@click.option(
    "--split",
    type=click.Choice(["oof", "holdout", "test"]),
    default="test",
    show_default=True,
    help="Split of the films to predict.",
)
@click.option("--fold", "folds", type=int, multiple=True, help="Fold to predict with; may be repeated.  [default: all]")
@click.option("--stage", help="For an experiment: stage whose checkpoints predict.  [default: the last]")
@click.option(
    "--top-k",
    type=click.IntRange(1),
    help="For an experiment: number of checkpoints per fold.  [default: the stage's top_k]",
)
@click.option(
    "--hflip/--no-hflip",
    default=True,
    show_default=True,
    help="For an experiment: average with the prediction of the flipped film.",
)
@click.option(
    "--block", type=int, default=64, show_default=True, help="Number of films per stored tar, the unit of resuming."
)
@click.option(
    "--models-in-memory",
    "models",
    type=int,
    help="Maximum number of networks in memory at a time.  [default: all that fit]",
)
@click.option("--out", type=FOLDER, help="Folder of the predictions.  [default: RUNS/NAME/SPLIT/predictions]")
@click.option("--dry-run", is_flag=True, help="Check everything that could fail for any split, but predict nothing.")
@click.option(
    "--ranks", "node_ranks", type=click.IntRange(1), help="With --dry-run: number of ranks planned for this node."
)
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: print one line of JSON.")
def predict(  # noqa: PLR0913  # one parameter per option
    config_path: Path | None,
    overrides: tuple[str, ...],
    bundle: Path | None,
    shards_path: Path | None,
    dicom_dir: Path | None,
    strict: bool,
    runs: Path | None,
    cpu: bool,
    split: str,
    folds: tuple[int, ...],
    stage: str | None,
    top_k: int | None,
    hflip: bool,
    block: int,
    models: int | None,
    out: Path | None,
    dry_run: bool,
    node_ranks: int | None,
    as_json: bool,
    **rules: Any,
) -> None:
    """Predict a split with the mean of networks and views.

    Out-of-fold films are predicted by the networks of their own fold only, holdout and test films by all networks.
    """
    from pneumo_dist.predict.predict import PredictOptions, predict
    from pneumo_dist.ranks.ranks import process_group

    _one_of("--config", config_path, "--bundle", bundle)
    _one_of("--shards", shards_path, "--dicom", dicom_dir)
    if dicom_dir is not None and split != "test":
        raise InputError(f"--dicom {dicom_dir}: its films have no folds; predict them with --split test")
    film_rules = FilmRules(**rules)
    if dicom_dir is None and (strict or film_rules != FilmRules()):
        raise InputError(
            "--strict, --any-film, --allow-burned-in and --max-pixels go with --dicom; "
            "the films of --shards were accepted by their build"
        )
    options = PredictOptions(split, folds, block, models)
    if dry_run:
        if config_path is None or shards_path is None or runs is None:
            raise InputError("--dry-run: give --config, --shards and --runs")
        from pneumo_dist.cli.dry_run import print_prediction
        from pneumo_dist.cli.networks import NetworkOptions, load_ensemble
        from pneumo_dist.doctor.prediction import PredictionPlan

        config, experiment = load_ensemble(NetworkOptions(config_path, overrides, folds, stage, top_k, hflip))
        print_prediction(PredictionPlan(config, experiment, shards_path, runs, folds, node_ranks, cpu), as_json)
        return
    with process_group(cpu) as ranks:
        shards = Shards(shards_path) if shards_path is not None else None
        if bundle is not None:
            from pneumo_dist.predict.bundle import read_bundle

            if split == "oof":
                raise InputError(f"--bundle {bundle}: out-of-fold predictions are made with --config and --runs")
            ensemble, _ = read_bundle(bundle)
        else:
            from pneumo_dist.cli.networks import NetworkOptions, find_networks

            assert config_path is not None
            chosen = NetworkOptions(config_path, overrides, folds, stage, top_k, hflip)
            ensemble = find_networks(chosen, runs, shards, ranks)
        if out is None and runs is None:
            raise InputError("give --out, the folder of the predictions, or --runs")
        name = "dicom" if dicom_dir is not None else split
        folder = out if out is not None else Path(str(runs)) / ensemble.name / name / "predictions"
        check_folder(folder)
        if shards is None:
            assert dicom_dir is not None
            shards = _new_films(dicom_dir, folder.parent / "films", ensemble, ranks, film_rules, strict)
        total = len(shards.indices("train" if split == "oof" else split))
        with console.progress(total if ranks.is_main else 0, "film", f"predict {name}") as bar:
            predict(ensemble, shards, folder, ranks, options, on_films=bar.update)
        if ranks.is_main:
            print(f"{name} predictions of {len(ensemble.networks)} networks: {folder}")


def _one_of(first: str, one: object, second: str, other: object) -> None:
    if (one is None) == (other is None):
        raise InputError(f"give {first} or {second}{'' if one is None else ', not both'}")


def _new_films(
    dicom_dir: Path, scratch: Path, ensemble: "Ensemble", ranks: "Ranks", rules: FilmRules, strict: bool
) -> Shards:
    """Build the films of a folder into a dataset in `scratch`, and print refusals and warnings with their reasons."""
    from pneumo_dist.predict.new_films import NewFilmOptions, film_paths, film_shards, row_paths
    from pneumo_dist.ranks.ranks import on_rank_0
    from pneumo_dist.ranks.watchdog import FILMS
    from shards.dataset.keys import load_salt

    film_options = NewFilmOptions(ensemble.film_size, rules, strict)

    def build() -> bool:
        paths, is_begun = film_paths([dicom_dir]), scratch.exists()
        salt = load_salt(scratch.with_name("films.salt"), create=True)
        try:
            shards, refused = film_shards(paths, scratch, film_options, on_film=lambda _: ranks.beat(FILMS), salt=salt)
        except InputError:
            if not is_begun:
                raise
            raise InputError(f"{scratch}: was built from other films; remove it, or give another --out") from None
        for film in refused:
            console.warn(f"{film.path}: refused, {film.reason}")
        if shards is None:
            return False
        for row, path in enumerate(row_paths(shards, paths)):
            for text in shards.warnings(row):
                console.warn(f"{path}: {text}")
        return True

    if not on_rank_0(ranks, build):
        raise InputError(f"--dicom {dicom_dir}: all its films were refused")
    return Shards(scratch)


@click.command(short_help="Average weights as an ensemble's config asks; write a bundle.")
@ENSEMBLE
@OVERRIDES
@click.option("--shards", "shards_path", type=FOLDER, help="Folder with the training films, for batch-norm statistics.")
@RUNS
@CPU
@click.option("--fold", "folds", type=int, multiple=True, help="Fold to include; may be repeated.  [default: all]")
@click.option("--bundle", type=FOLDER, help="File to write networks, preprocessing and thresholds to.")
@RULE
def average(  # noqa: PLR0913  # one parameter per option
    config_path: Path | None,
    overrides: tuple[str, ...],
    shards_path: Path | None,
    runs: Path,
    cpu: bool,
    folds: tuple[int, ...],
    bundle: Path | None,
    rule_name: RuleName | None,
) -> None:
    """Average the weights of an ensemble as its config asks, and write it as one file for predict and segment."""
    from pneumo_dist.cli.networks import NetworkOptions, find_networks
    from pneumo_dist.config.ensemble import load_either
    from pneumo_dist.ranks.ranks import process_group
    from pneumo_dist.thresholds.choose import choose_rule, run_thresholds

    if config_path is None:
        raise InputError("give --config, an experiment or an ensemble")
    rule, tuned = None, None
    if bundle is not None:
        if bundle.is_dir():
            raise InputError(f"--bundle {bundle}: is a folder; give the file to write")
        # Chosen first: averaging takes hours and would be wasted without a rule.
        config = load_either(config_path, overrides)
        rule, tuned = choose_rule(config, rule_name, lambda: run_thresholds(runs / config.name))
    with process_group(cpu) as ranks:
        shards = Shards(shards_path) if shards_path is not None else None
        ensemble = find_networks(NetworkOptions(config_path, overrides, folds), runs, shards, ranks)
        if not ranks.is_main:
            return
        for network in ensemble.networks:
            print(console.printable(network.name))
        if bundle is not None and rule is not None:
            from pneumo_dist.predict.bundle import write_bundle
            from pneumo_dist.thresholds.file import read_scores
            from pneumo_dist.thresholds.rules import THRESHOLDS

            thresholds = runs / ensemble.name / "oof" / THRESHOLDS
            scores = None if tuned is None else {**read_scores(thresholds), "rule": tuned.name}
            write_bundle(bundle, ensemble, rule, scores)
            print(f"bundle of {len(ensemble.networks)} networks: {bundle}")


@click.command(short_help="Segment new DICOM films.")
@click.argument("films", nargs=-1, required=True, type=FOLDER)
@click.option("--bundle", type=FOLDER, required=True, help="Bundle written by 'average --bundle'.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the masks, overlays and DICOM objects.")
@film_options
@CPU
def segment(films: tuple[Path, ...], bundle: Path, out: Path, strict: bool, cpu: bool, **rules: Any) -> int:
    """Segment new DICOM films, or folders of them, and print a line of JSON per film.

    For research, not for diagnosis.
    """
    if launched_rank(os.environ) is not None:
        raise InputError("segment runs as one process; for many films on several ranks use predict --bundle --dicom")
    import json

    from pneumo_dist import __version__
    from pneumo_dist.output.dicom_seg import Algorithm
    from pneumo_dist.output.segment import FilmPrediction, segment_film
    from pneumo_dist.predict.bundle import read_bundle
    from pneumo_dist.predict.new_films import NewFilmOptions, check_distinct, film_paths, film_shards, row_paths
    from pneumo_dist.predict.predict import PredictOptions, predict
    from pneumo_dist.predict.store import Predictions
    from pneumo_dist.ranks.ranks import process_group
    from shards.temporaries import scratch_folder

    paths, film_rules = film_paths(films), FilmRules(**rules)
    check_distinct(paths)
    check_folder(out)
    ensemble, rule = read_bundle(bundle)
    # The decoded films never leave the disk that the user chose. A mounted OUT may be all that is writable.
    parent = out if out.exists() and not os.access(out.parent, os.W_OK) else out.parent
    with process_group(cpu) as ranks, scratch_folder(parent, f"{out.name}.films") as scratch:
        film_options = NewFilmOptions(ensemble.film_size, film_rules, strict)
        shards, refused = film_shards(paths, scratch / "films", film_options)
        for film in refused:
            print(f"error: {console.printable(str(film.path))}: refused, {film.reason}", file=sys.stderr)
        is_complete = not refused
        if shards is not None:
            predict(ensemble, shards, scratch / "predictions", ranks, PredictOptions())
            predictions = Predictions(scratch / "predictions")
            path_of = dict(zip(shards.column("key").tolist(), row_paths(shards, paths), strict=True))
            out.mkdir(parents=True, exist_ok=True)
            algorithm = Algorithm(ensemble.name, __version__)
            for number, (row, p8) in enumerate(predictions):
                path = path_of[row["key"]]
                prediction = FilmPrediction(p8, predictions.grid(number), row["class_probability"])
                try:
                    findings = segment_film(path, prediction, rule, algorithm, out, film_rules)
                except InputError as error:  # the other films are still segmented
                    print(f"error: {console.printable(str(error))}", file=sys.stderr)
                    is_complete = False
                else:
                    for text in findings["warnings"]:
                        console.warn(f"{path}: {text}")
                    print(json.dumps(findings))
            shards.close()
    return console.EXIT_DONE if is_complete else console.EXIT_USAGE
