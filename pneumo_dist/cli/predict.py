"""The commands predict and average, which run networks. Heavy modules are imported when a command runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pneumo_dist.cli.options import CONFIG_FILE, CPU, FOLDER, OVERRIDES, RULE, RUNS, check_folder
from pneumo_dist.config.rules import RuleName
from shards import console
from shards.dataset.table import Shards
from shards.dicom.rules import FilmRules
from shards.errors import InputError
from shards.film_options import film_options

if TYPE_CHECKING:
    from pneumo_dist.predict.ensemble import Ensemble
    from pneumo_dist.predict.predict import PredictOptions
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
@click.option("--images", "image_dir", type=FOLDER, help="Folder with new PNG or JPEG films, instead of --shards.")
@film_options
@click.option("--runs", type=FOLDER, help="Folder of all runs.")
@CPU
@click.option(
    "--split",
    type=click.Choice(["oof", "holdout", "test", "train", "unlabelled"]),
    default="test",
    show_default=True,
    help="Split of the films to predict. train and unlabelled write maps from which each fold may learn.",
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
    image_dir: Path | None,
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
    Training films, and films without labels, are predicted for each fold by its networks.
    """
    from pneumo_dist.cli.networks import NetworkOptions, find_networks, limits_of, load_ensemble
    from pneumo_dist.maps.labels import labels_folder
    from pneumo_dist.predict.predict import PredictOptions, predict
    from pneumo_dist.ranks.ranks import process_group

    _one_of({"--config": config_path, "--bundle": bundle})
    _one_of({"--shards": shards_path, "--dicom": dicom_dir, "--images": image_dir})
    new = None
    film_rules = FilmRules(**rules)
    if dicom_dir is not None or image_dir is not None:
        name, films_dir = ("dicom", dicom_dir) if dicom_dir is not None else ("images", image_dir)
        assert films_dir is not None
        new = _NewFilms(name, films_dir, film_rules, strict)
        if split != "test":
            raise InputError(f"{new}: its films have no folds; predict them with --split test")
    elif strict or film_rules != FilmRules():
        raise InputError(
            "--strict, --any-film, --allow-burned-in and --max-pixels go with --dicom or --images; "
            "the films of --shards were accepted by their build"
        )
    options = PredictOptions(split, folds, block, models)
    if dry_run:
        if config_path is None or shards_path is None or runs is None:
            raise InputError("--dry-run: give --config, --shards and --runs")
        from pneumo_dist.cli.dry_run import print_prediction
        from pneumo_dist.doctor.prediction import PredictionPlan

        config, experiment = load_ensemble(NetworkOptions(config_path, overrides, stage, top_k, hflip))
        print_prediction(PredictionPlan(config, experiment, shards_path, runs, folds, node_ranks, cpu), as_json)
        return
    loaded = None
    if config_path is not None:
        if runs is None:
            raise InputError("give --runs, the folder of all runs")
        loaded = load_ensemble(NetworkOptions(config_path, overrides, stage, top_k, hflip))
    with process_group(cpu, limits_of(loaded[1]) if loaded else None) as ranks:
        shards = Shards(shards_path) if shards_path is not None else None
        if bundle is not None:
            from pneumo_dist.predict.bundle import read_bundle

            if split in ("oof", "train", "unlabelled"):
                raise InputError(f"--bundle {bundle}: predictions of single folds are made with --config and --runs")
            ensemble, _ = read_bundle(bundle)
        else:
            assert loaded is not None and runs is not None
            ensemble = find_networks(loaded, folds, runs, shards, ranks)
        if split in ("train", "unlabelled"):
            assert shards is not None and loaded is not None and runs is not None
            if not ensemble.has_maps:
                raise InputError(f"--split {split}: {ensemble.name} has classifiers alone, and no maps to learn from")
            source = ensemble.name if loaded[1] is None else f"{ensemble.name}/{stage or loaded[1].stages[-1].name}"
            _predict_to_learn(ensemble, shards, ranks, options, out, partial(labels_folder, runs, source, split))
            return
        if out is None and runs is None:
            raise InputError("give --out, the folder of the predictions, or --runs")
        name = split if new is None else new.kind
        folder = out if out is not None else Path(str(runs)) / ensemble.name / name / "predictions"
        check_folder(folder)
        if shards is None:
            assert new is not None
            shards = new.shards(folder.parent / "films", ensemble, ranks)
        total = len(shards.indices("train" if split == "oof" else split))
        with console.progress(total if ranks.is_main else 0, "film", f"predict {name}") as bar:
            predict(ensemble, shards, folder, ranks, options, on_films=bar.update)
        if ranks.is_main:
            print(f"{name} predictions of {len(ensemble.networks)} networks: {folder}")


def _predict_to_learn(
    ensemble: "Ensemble",
    shards: Shards,
    ranks: "Ranks",
    options: "PredictOptions",
    out: Path | None,
    folder_of: Callable[[int], Path],
) -> None:
    """Write the maps from which each fold of the ensemble may learn into a folder of its own."""
    from pneumo_dist.predict.blocks import films_to_learn
    from pneumo_dist.predict.predict import predict

    folds = options.folds or tuple(sorted({network.fold for network in ensemble.networks}))
    if out is not None and len(folds) > 1:
        raise InputError("--out: each fold has its own maps; give one --fold, or leave --out away")
    for fold in folds:
        folder = out or folder_of(fold)
        check_folder(folder)
        total = len(films_to_learn(shards, options.split, fold)) if ranks.is_main else 0
        with console.progress(total, "film", f"predict {options.split}, fold {fold}") as bar:
            predict(ensemble, shards, folder, ranks, replace(options, folds=(fold,)), on_films=bar.update)
        if ranks.is_main:
            print(f"maps of {options.split} films for fold {fold}: {folder}")


def _one_of(given: Mapping[str, object]) -> None:
    """Raise InputError unless exactly one of some options has a value."""
    count = sum(value is not None for value in given.values())
    if count != 1:
        *others, last = given
        raise InputError(
            f"give {', '.join(others)} or {last}{', not both' if count == 2 else ', only one' if count else ''}"
        )


@dataclass(frozen=True)
class _NewFilms:
    """A folder of new films. `kind` is the name of its option, dicom or images."""

    kind: str
    folder: Path
    rules: FilmRules
    strict: bool

    def __str__(self) -> str:
        return f"--{self.kind} {self.folder}"

    def shards(self, scratch: Path, ensemble: "Ensemble", ranks: "Ranks") -> Shards:
        """Build the films into a dataset in `scratch`, and print refusals and warnings with their reasons."""
        from pneumo_dist.predict.new_films import NewFilmOptions, film_shards, find_films, row_films
        from pneumo_dist.ranks.ranks import on_rank_0
        from pneumo_dist.ranks.watchdog import FILMS
        from shards.build.folders import DICOM, IMAGES
        from shards.dataset.keys import load_salt

        options = NewFilmOptions(ensemble.film_size, self.rules, self.strict)

        def build() -> bool:
            films = find_films([self.folder], DICOM if self.kind == "dicom" else IMAGES)
            is_begun = scratch.exists()
            salt = load_salt(scratch.with_name("films.salt"), create=True)
            try:
                shards, refused = film_shards(films, scratch, options, on_film=lambda _: ranks.beat(FILMS), salt=salt)
            except InputError:
                if not is_begun:
                    raise
                raise InputError(f"{scratch}: was built from other films; remove it, or give another --out") from None
            for film in refused:
                console.warn(f"{film.path}: refused, {film.reason}")
            if shards is None:
                return False
            for row, new_film in enumerate(row_films(shards, films)):
                for text in shards.warnings(row):
                    console.warn(f"{new_film.path}: {text}")
            return True

        if not on_rank_0(ranks, build):
            raise InputError(f"{self}: all its films were refused")
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
    from pneumo_dist.cli.networks import NetworkOptions, find_networks, limits_of, load_ensemble
    from pneumo_dist.config.ensemble import check_finds_masks
    from pneumo_dist.ranks.ranks import process_group
    from pneumo_dist.thresholds.choose import choose_rule, run_thresholds

    if config_path is None:
        raise InputError("give --config, an experiment or an ensemble")
    loaded = load_ensemble(NetworkOptions(config_path, overrides))
    rule, tuned = None, None
    if bundle is not None:
        if bundle.is_dir():
            raise InputError(f"--bundle {bundle}: is a folder; give the file to write")
        # Chosen first: averaging takes hours and would be wasted without a rule.
        config = loaded[1] or loaded[0]
        check_finds_masks(config)
        rule, tuned = choose_rule(config, rule_name, lambda: run_thresholds(runs / config.name))
        if rule.outside:
            raise InputError(
                f"--bundle {bundle}: the rule was tuned with class probabilities from outside, which a bundle does not "
                "have; tune without --class-probabilities, or choose another --rule"
            )
    with process_group(cpu, limits_of(loaded[1])) as ranks:
        shards = Shards(shards_path) if shards_path is not None else None
        ensemble = find_networks(loaded, folds, runs, shards, ranks)
        if bundle is not None and not ensemble.has_maps:
            raise InputError(f"--bundle {bundle}: all networks are classifiers, which find no masks; add a segmenter")
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
