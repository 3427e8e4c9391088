"""Three small experiments, trained on two folds, and films to predict."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builders import SALT, tiny_experiment
from images import decode

from pneumo_dist.config.ensemble import EnsembleConfig, MemberConfig
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.maps.store import Predictions
from pneumo_dist.network.build import split_outputs
from pneumo_dist.predict.average import averaged_checkpoint
from pneumo_dist.predict.ensemble import Ensemble, EnsembleNetwork, TrainedFold, resolve
from pneumo_dist.predict.predict import PredictOptions, predict
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.train.fold import train_fold
from shards.build.build import build
from shards.build.films import FilmFolders, LabelFiles
from shards.build.options import BuildOptions
from shards.build.sources import find_sources
from shards.dataset.table import Shards
from shards.phantom.dataset import synthesize

ALONE = Ranks.alone()
SIZE = 64


def two_stages(name: str, model: dict[str, Any], data: dict[str, Any] | None = None, **stage: Any) -> Experiment:
    """Return an experiment of two stages, whose second starts from the first."""
    given = {"image_size": SIZE, "micro_batch": 2, "top_k": 2, **stage}
    stages = {"name": "early", **given, "epochs": 1}, {"name": "main", **given}
    data = {"loader": "torch", **(data or {})}
    return tiny_experiment(*stages, name=name, model={"in_channels": 1, **model}, data=data)


PLAIN = two_stages("plain", {"arch": "fcn", "fcn": {"widths": (4, 6, 8), "norm": True}})
HEAD = two_stages(
    "head",
    {"arch": "unet", "encoder": "tu-mobilenetv3_small_050", "decoder_channels": (8, 8, 8, 8, 8), "classification": {}},
    loss={"bce": 1, "classification": 1},
)
# Another side, number of channels and normalisation than the others.
OTHER = two_stages(
    "other",
    {"arch": "fcn", "in_channels": 3, "fcn": {"widths": (4, 6, 8), "norm": True}},
    {"mean": (0, 0, 0), "std": (1, 1, 0.5)},
    image_size=32,
    eval_batch=4,
)


# Members of an ensemble with three inputs.
MIXED: list[dict[str, Any]] = [
    {"experiment": "plain", "weight": 3, "top_k": 1},
    {"experiment": "other", "weight": 2, "top_k": 1},
    {"experiment": "head", "weight": 1, "top_k": 1, "image_size": 96},
]


@dataclass(frozen=True)
class Trained:
    """Shards with twelve films in two folds and five test films, and the runs of the experiments."""

    shards: Shards
    runs: Path

    def ensemble(self, **given: Any) -> Ensemble:
        """Return an ensemble of these runs; without members, of the plain experiment."""
        config = EnsembleConfig.model_validate({"name": "both", "members": [{"experiment": "plain"}], **given})

        def averaged(member: MemberConfig, trained_fold: TrainedFold) -> Path:
            folder = self.runs / config.name / "averaged" / member.experiment / f"fold{trained_fold.number}"
            return averaged_checkpoint(member, trained_fold, folder, self.shards, ALONE)

        return resolve(config, self.runs, self.shards.folds(), ALONE, averaged)


def make(folder: Path) -> Trained:
    """Make films and shards, and train both folds of each experiment."""
    made = synthesize(folder / "synth", images=12, size=96, positive_rate=0.5, seed=3)
    test = synthesize(folder / "test", images=5, size=96, positive_rate=0.5, seed=4)
    sources = find_sources(
        FilmFolders(dicom=[made.dicom_dir], test_dicom=[test.dicom_dir]), LabelFiles(made.labels_csv)
    )
    build(sources, folder / "shards", BuildOptions(image_size=SIZE, folds=2), SALT)
    shards = Shards(folder / "shards")
    for experiment in (PLAIN, HEAD, OTHER):
        for fold in (0, 1):
            place = folder / "runs" / experiment.name / f"fold{fold}"
            train_fold(FoldRun(experiment, fold, shards, place, ALONE), Experiment.model_dump_json)  # JSON is YAML
    return Trained(shards, folder / "runs")


def image(shards: Shards, index: int) -> torch.Tensor:
    """Return a film as input of the networks of PLAIN and HEAD, (1, 1, SIZE, SIZE), without a loader."""
    grey = decode(shards.read(index, "image"))
    assert grey.shape == (SIZE, SIZE)
    return torch.from_numpy((grey.astype(np.float32) / 255 - 0.485) / 0.229)[None, None]


def stored(trained: Trained, ensemble: Ensemble, folder: Path, split: str = "test", **options: Any) -> Predictions:
    """Predict a split into a folder, and open the predictions."""
    predict(ensemble, trained.shards, folder, ALONE, PredictOptions(split, **options))
    return Predictions(folder)


@torch.no_grad()
def direct(network: EnsembleNetwork, images: torch.Tensor) -> tuple[np.ndarray[Any, Any], float | None]:
    """Return a segmenter's probabilities and class probability for one film, from a plain forward pass."""
    logits, classes = split_outputs(network.read().build(network.name)(images))
    assert logits is not None
    return torch.sigmoid(logits)[0, 0].numpy(), None if classes is None else float(torch.sigmoid(classes))


def row_of(shards: Shards, key: str) -> int:
    """Return the table row of a film."""
    return int(np.flatnonzero(shards.column("key") == key)[0])
