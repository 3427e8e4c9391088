"""A classifier, and a segmenter of positive films alone, trained on two folds beside the experiments of `tiny_runs`."""

import shutil
from dataclasses import replace
from pathlib import Path

from tiny_runs import ALONE, Trained, two_stages

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.train.fold import train_fold

CALLS = two_stages(
    "calls",
    {"arch": "classifier", "encoder": "tu-mobilenetv3_small_050", "classification": {"dropout": 0.1}},
    loss={"bce": 0, "dice": 0, "focal": 0, "classification": 1},
)
POSITIVES = two_stages("positives", {"arch": "fcn", "fcn": {"widths": (4, 6, 8), "norm": True}}, sample_rate=1)
# A segmenter without a head, one with a head, and the classifier.
MEMBERS = [
    {"experiment": "plain", "weight": 3, "top_k": 1},
    {"experiment": "head", "weight": 1, "top_k": 1},
    {"experiment": "calls", "weight": 2, "top_k": 1},
]


def with_classifier(trained: Trained, folder: Path) -> Trained:
    """Return the runs in a new folder, with the classifier."""
    runs = folder / "runs"
    for name in ("plain", "head"):
        shutil.copytree(trained.runs / name, runs / name, symlinks=True)
    for experiment in (CALLS, POSITIVES):
        for fold in (0, 1):
            place = runs / experiment.name / f"fold{fold}"
            train_fold(FoldRun(experiment, fold, trained.shards, place, ALONE), Experiment.model_dump_json)  # is YAML
    return replace(trained, runs=runs)
