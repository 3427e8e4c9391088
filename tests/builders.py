"""Experiments and datasets for tests, given only by the settings that matter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pneumo_dist.config.experiment import Experiment
from shards.build.build import build
from shards.build.films import FilmFolders, LabelFiles
from shards.build.options import BuildOptions
from shards.build.sources import find_sources
from shards.dataset.table import Shards
from shards.phantom.dataset import synthesize

SALT = b"a salt for tests only"

TINY_MODEL: dict[str, Any] = {"arch": "fcn", "in_channels": 1, "fcn": {"widths": (4, 4, 8), "norm": True}}
"""A network that a CPU trains at once."""


def experiment_of(*stages: Mapping[str, Any], **values: Any) -> Experiment:
    """Return the experiment x with these stages, by default one; by default they are named s0, s1, … and take 64 px."""
    named = [{"name": f"s{number}", "image_size": 64, **stage} for number, stage in enumerate(stages or [{}])]
    return Experiment.model_validate({"name": "x", "stages": named, **values})


def tiny_experiment(*stages: Mapping[str, Any], **values: Any) -> Experiment:
    """Return an experiment whose training takes a moment: TINY_MODEL in float32, few films per step, few epochs."""
    short = {"image_size": 96, "epochs": 2, "global_batch": 2, "micro_batch": 1, "eval_batch": 3, "top_k": 1}
    given = [{**short, "optim": {"lr": 0.01}, **stage} for stage in stages]
    return experiment_of(*given, **{"amp": "float32", "model": TINY_MODEL, "data": {"loader": "synthetic"}, **values})


def phantom_shards(folder: Path, films: int = 12, size: int = 96, **options: Any) -> Shards:
    """Return phantom films of size x size pixels in two folds, built in a folder `shards`."""
    made = synthesize(folder / "synth", images=films, size=size, positive_rate=0.5, seed=3)
    sources = find_sources(FilmFolders(dicom=[made.dicom_dir]), LabelFiles(made.labels_csv))
    build(sources, folder / "shards", BuildOptions(image_size=size, folds=2, **options), SALT)
    return Shards(folder / "shards")
