"""The commands that run networks: predict, average, segment. They import what they need when they run."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pneumo_dist.cli.masks import RULE, check_folder
from pneumo_dist.cli.options import CPU, FOLDER, OVERRIDES, RUNS
from pneumo_dist.ranks.environment import place_of
from shards import console
from shards.dataset.table import Shards
from shards.dicom.rules import FilmRules
from shards.errors import InputError
from shards.film_options import film_options

if TYPE_CHECKING:
    from pneumo_dist.predict.ensemble import Ensemble
    from pneumo_dist.ranks.ranks import Ranks
    from pneumo_dist.thresholds.choose import Picked

ENSEMBLE = click.option("--config", "config_path", type=FOLDER, help="Experiment or ensemble, a YAML file.")
BUNDLE = click.option("--bundle", type=FOLDER, help="A file of 'average --bundle', in place of --config and --runs.")


@click.command()
@ENSEMBLE
@OVERRIDES
@BUNDLE
@click.option("--shards", "shards_path", type=FOLDER, help="Folder that 'shards build' made.")
@click.option("--dicom", "dicom_dir", type=FOLDER, help="Folder of new DICOM films, in place of --shards.")
@film_options
@click.option("--runs", type=FOLDER, help="Folder of all runs.")
@CPU
@click.option("--split", type=click.Choice(["oof", "holdout", "test"]), default="test", show_default=True)
@click.option("--fold", "folds", type=int, multiple=True, help="Fold to predict with; may be repeated.  [default: all]")
@click.option("--stage", help="Of an experiment: stage whose checkpoints predict.  [default: the last]")
@click.option(
    "--top-k", type=click.IntRange(1), help="Of an experiment: checkpoints per fold.  [default: the stage's top_k]"
)
@click.option("--hflip/--no-hflip", default=True, show_default=True, help="Of an experiment: average with the flip.")
@click.option("--block", type=int, default=64, show_default=True, help="Films per stored tar, the unit of resuming.")
@click.option("--models-in-memory", "models", type=int, default=4, show_default=True, help="Networks held at a time.")
@click.option("--out", type=FOLDER, help="Folder of the predictions.  [default: RUNS/NAME/SPLIT/predictions]")
@click.option("--dry-run", is_flag=True, help="Look for what would go wrong with any split, predict nothing.")
@click.option("--ranks", "node_ranks", type=click.IntRange(1), help="With --dry-run: ranks that this node is to run.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: print one line of JSON.")
def predict(
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
    models: int,
    out: Path | None,
    dry_run: bool,
    node_ranks: int | None,
    as_json: bool,
    **rules: Any,
) -> None:
    """Predict a split, averaged over networks and views.

    Out-of-fold films are predicted by the networks of their fold alone, holdout and test films by all.
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
            "films of --shards were taken by their build"
        )
    options = PredictOptions(split, folds, block, models)
    if dry_run:
        if config_path is None or shards_path is None or runs is None:
            raise InputError("--dry-run: give --config, --shards and --runs")
        from pneumo_dist.cli.dry_run import print_prediction
        from pneumo_dist.cli.networks import ensemble_of
        from pneumo_dist.doctor.prediction import ToPredict

        config, own = ensemble_of(config_path, overrides, (stage, top_k, hflip))
        print_prediction(ToPredict(config, own, shards_path, runs, folds, node_ranks, cpu), as_json)
        return
    with process_group(cpu) as ranks:
        shards = Shards(shards_path) if shards_path is not None else None
        if bundle is not None:
            from pneumo_dist.predict.bundle import read_bundle

            if split == "oof":
                raise InputError(f"--bundle {bundle}: out-of-fold predictions are made with --config and --runs")
            ensemble, _ = read_bundle(bundle)
        else:
            from pneumo_dist.cli.networks import resolved

            ensemble = resolved(config_path, overrides, runs, shards, ranks, folds, (stage, top_k, hflip))
        if out is None and runs is None:
            raise InputError("give --out, the folder of the predictions, or --runs")
        name = "dicom" if dicom_dir is not None else split
        folder = out if out is not None else Path(str(runs)) / ensemble.name / name / "predictions"
        check_folder(folder)
        films = shards if shards is not None else _new_films(dicom_dir, folder, ensemble, ranks, film_rules, strict)
        total = len(films.indices("train" if split == "oof" else split))
        with console.progress(total if ranks.is_main else 0, "film", f"predict {name}") as bar:
            predict(ensemble, films, folder, ranks, options, on_films=bar.update)
        if ranks.is_main:
            print(f"{name} predictions of {len(ensemble.networks)} networks: {folder}")


def _one_of(first: str, one: object, second: str, other: object) -> None:
    if (one is None) == (other is None):
        raise InputError(f"give {first} or {second}{'' if one is None else ', not both'}")


def _new_films(
    dicom_dir: Path | None, folder: Path, ensemble: "Ensemble", ranks: "Ranks", rules: FilmRules, strict: bool
) -> Shards:
    """Return the films of a folder as a dataset beside the predictions; say which were refused or doubtful, and why."""
    from pneumo_dist.predict.new_films import NewFilmOptions, film_paths, film_shards, row_paths
    from pneumo_dist.ranks.ranks import on_rank_0
    from pneumo_dist.ranks.watchdog import FILMS
    from shards.dataset.keys import load_salt

    assert dicom_dir is not None
    scratch, film_options = folder.parent / "films", NewFilmOptions(ensemble.image_size, rules, strict)

    def build() -> bool:
        paths, is_begun = film_paths([dicom_dir]), scratch.exists()
        salt = load_salt(scratch.with_name("films.salt"), create=True)
        try:
            shards, refused = film_shards(paths, scratch, film_options, on_film=lambda _: ranks.beat(FILMS), salt=salt)
        except InputError:
            if not is_begun:
                raise
            raise InputError(f"{scratch}: was made of other films; remove it, or give another --out") from None
        for each in refused:
            print(f"warning: {each.path}: refused, {each.reason}", file=sys.stderr)
        if shards is None:
            return False
        for row, path in enumerate(row_paths(shards, paths)):
            for text in shards.warnings(row):
                print(f"warning: {path}: {text}", file=sys.stderr)
        return True

    if not on_rank_0(ranks, build):
        raise InputError(f"--dicom {dicom_dir}: all its films were refused")
    return Shards(scratch)


@click.command()
@ENSEMBLE
@OVERRIDES
@click.option("--shards", "shards_path", type=FOLDER, help="The films of the training, for batch-norm statistics.")
@RUNS
@CPU
@click.option("--fold", "folds", type=int, multiple=True, help="Fold to take; may be repeated.  [default: all]")
@click.option("--bundle", type=FOLDER, help="Write networks, preprocessing and thresholds into this file.")
@RULE
def average(
    config_path: Path | None,
    overrides: tuple[str, ...],
    shards_path: Path | None,
    runs: Path,
    cpu: bool,
    folds: tuple[int, ...],
    bundle: Path | None,
    rule: str | None,
) -> None:
    """Average the weights that an ensemble asks for, and write it as one file that predict and segment take alone."""
    from pneumo_dist.cli.networks import resolved
    from pneumo_dist.ranks.ranks import process_group

    if config_path is None:
        raise InputError("give --config, an experiment or an ensemble")
    if bundle is not None and bundle.is_dir():
        raise InputError(f"--bundle {bundle}: is a folder; give the file to write")
    picked = _bundled_rule(config_path, overrides, rule, runs) if bundle is not None else None
    with process_group(cpu) as ranks:
        shards = Shards(shards_path) if shards_path is not None else None
        ensemble = resolved(config_path, overrides, runs, shards, ranks, folds)
        if not ranks.is_main:
            return
        for network in ensemble.networks:
            print(network.name)
        if bundle is not None and picked is not None:
            from pneumo_dist.predict.bundle import write_bundle
            from pneumo_dist.thresholds.file import THRESHOLDS, read_scores

            tuned = runs / ensemble.name / "oof" / THRESHOLDS
            scores = None if picked.name is None else {**read_scores(tuned), "rule": picked.name}
            write_bundle(bundle, ensemble, picked.rule, scores)
            print(f"bundle of {len(ensemble.networks)} networks: {bundle}")


def _bundled_rule(config_path: Path, overrides: tuple[str, ...], rule: str | None, runs: Path) -> "Picked":
    """Return the rule of a bundle, before hours go into averages that it has no use for."""
    from pneumo_dist.config.ensemble import load_either
    from pneumo_dist.thresholds.choose import rule_for

    config = load_either(config_path, overrides)
    return rule_for(config, rule, runs / config.name)


@click.command()
@click.argument("films", nargs=-1, required=True, type=FOLDER)
@click.option("--bundle", type=FOLDER, required=True, help="A file of 'average --bundle'.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the masks, overlays and DICOM objects.")
@film_options
@CPU
def segment(films: tuple[Path, ...], bundle: Path, out: Path, strict: bool, cpu: bool, **rules: Any) -> int:
    """Segment new DICOM films, or folders of them; print a line of JSON for each. For research, not for diagnosis."""
    if place_of(os.environ) is not None:
        raise InputError("segment works alone; for many films on several ranks use predict --bundle --dicom")
    import json
    import tempfile

    from pneumo_dist import __version__
    from pneumo_dist.output.dicom_seg import Algorithm
    from pneumo_dist.output.segment import segment_film
    from pneumo_dist.predict.bundle import read_bundle
    from pneumo_dist.predict.new_films import NewFilmOptions, check_distinct, film_paths, film_shards, row_paths
    from pneumo_dist.predict.predict import PredictOptions, predict
    from pneumo_dist.predict.store import Predictions
    from pneumo_dist.ranks.ranks import process_group

    paths, film_rules = film_paths(films), FilmRules(**rules)
    check_distinct(paths)
    check_folder(out)
    ensemble, rule = read_bundle(bundle)
    with process_group(cpu) as ranks, tempfile.TemporaryDirectory() as scratch:
        film_options = NewFilmOptions(ensemble.image_size, film_rules, strict)
        shards, refused = film_shards(paths, Path(scratch) / "films", film_options)
        for each in refused:
            print(f"error: {each.path}: refused, {each.reason}", file=sys.stderr)
        is_whole = not refused
        if shards is not None:
            predict(ensemble, shards, Path(scratch) / "predictions", ranks, PredictOptions())
            predictions = Predictions(Path(scratch) / "predictions")
            path_of = dict(zip(shards.column("key").tolist(), row_paths(shards, paths), strict=True))
            out.mkdir(parents=True, exist_ok=True)
            algorithm = Algorithm(ensemble.name, __version__)
            for number, (row, p8) in enumerate(predictions):
                grid, path = predictions.grid(number), path_of[row["key"]]
                try:
                    found = segment_film(path, p8, grid, rule, row["class_probability"], algorithm, out, film_rules)
                except InputError as error:  # the other films are none the worse for it
                    print(f"error: {error}", file=sys.stderr)
                    is_whole = False
                else:
                    for text in found["warnings"]:
                        print(f"warning: {path}: {text}", file=sys.stderr)
                    print(json.dumps(found))
            shards.close()
    return console.EXIT_DONE if is_whole else console.EXIT_USAGE
