"""The sides of benchmarks.race: the demo, the demo as it was, the plain loop, Lightning and nnU-Net."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import BASELINE, ROOT
from benchmarks.common import step_times, torchrun
from benchmarks.curves import Point, curve_of
from benchmarks.race_clock import versions_of
from benchmarks.race_external import run_lightning, run_nnunet
from benchmarks.race_films import FOLD, shards_of
from benchmarks.race_job import CORES, Job, run_logged
from benchmarks.race_score import Result
from benchmarks.race_settings import experiment_settings, plain_settings
from pneumo_dist.config.load import load_config
from pneumo_dist.data.plan import split_fold
from shards import __version__
from shards.dataset.table import Shards

DEMO = ROOT / "configs/demo.yaml"
# From the start of a command to its first step, at most, on a loaded machine.
START_SECONDS = 300.0


@dataclass(frozen=True)
class Side:
    """A side of the race.

    Attributes:
        name: Its name, for files and options.
        title: Its name for readers.
        run: Trains it.
        seeds: Number of seeds by default: one where a seed takes an hour or more.
        change: What a user of it would change.
    """

    name: str
    title: str
    run: Callable[[Job], Result]
    seeds: int
    change: str


def run_config(config: Path, job: Job) -> Result:
    """Train a config as the demo does, to its end. Its own validation is the curve."""
    overrides = [f"seed={job.seed}", *(["epochs=2"] if job.trial else [])]
    experiment = load_config(config, overrides).experiment
    shutil.rmtree(job.folder, ignore_errors=True)
    arguments = ["--config", config, "--fold", FOLD, "--shards", shards_of(job.work), "--runs", job.folder]
    arguments += [word for override in overrides for word in ("--set", override)]
    command = torchrun(CORES, "pneumo_dist", "train", "--cpu", *arguments)
    run_logged(command, job.log, limit=job.cap + START_SECONDS)
    stages = [job.folder / experiment.name / f"fold{FOLD}" / stage.name for stage in experiment.stages]
    stages = [stage for stage in stages if (stage / "metrics.jsonl").exists()]
    curve = curve_of(stages)
    films = sum(
        len(step_times(folder)) * stage.global_batch for folder, stage in zip(stages, experiment.stages, strict=False)
    )
    rate = films / curve[-1].seconds
    return Result(
        job.side,
        job.seed,
        curve,
        rate,
        experiment_settings(experiment),
        {"pneumo_dist": __version__, **versions_of("torch")},
    )


def run_plain(job: Job) -> Result:
    """Train `benchmarks.plain_loop` on the baseline's network, rate and loss, which were not tuned on these films.

    It trains for as many epochs as the baseline has, and on to the goal or the cap.
    """
    experiment = load_config(BASELINE).experiment
    stage = experiment.stages[0]
    epochs = 2 if job.trial else sum(each.epochs for each in experiment.stages)
    shards = shards_of(job.work)
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    out = job.folder / "plain.json"
    command = [sys.executable, "-m", "benchmarks.plain_loop", "--shards", shards, "--config", BASELINE]
    command += ["--out", out, "--seed", job.seed, "--goal", job.goal, "--cap", job.cap, "--epochs", epochs]
    run_logged(command, job.log, threads=CORES)
    curve = tuple(Point(*each) for each in json.loads(out.read_text()))
    batch = stage.global_batch
    per_epoch = len(split_fold(Shards(shards), FOLD, always_train=False).train) // batch * batch
    rate = per_epoch * len(curve) / curve[-1].seconds
    versions = versions_of("torch", "albumentations", "segmentation_models_pytorch")
    return Result(job.side, job.seed, curve, rate, plain_settings(experiment), versions)


SIDES = {
    side.name: side
    for side in (
        Side(
            *("ours", "the demo's config", partial(run_config, DEMO), 3),
            "a recipe's config instead of the demo's: a pretrained encoder, a larger image, five folds",
        ),
        Side(
            *("before", "the demo's config until 2026-11-27", partial(run_config, BASELINE), 3),
            "group norm, a higher rate with warm-up, no focal loss, as the demo since",
        ),
        Side(
            *("plain", "plain loop", run_plain, 3),
            "a schedule, a sampler of positive films, weights of ImageNet",
        ),
        Side(
            *("lightning", "Lightning + segmentation_models_pytorch + albumentations", run_lightning, 1),
            "weights of ImageNet, as the tutorials have; cross-entropy beside Dice; a higher rate from random weights",
        ),
        Side(
            *("nnunet", "nnU-Net v2 2d", run_nnunet, 1),
            "a GPU with its 1,000 epochs of 250 iterations; a residual encoder's planner, which it now recommends",
        ),
    )
}
