"""What can be known to go wrong before a prediction starts: networks that are not there, or cannot take their input."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pneumo_dist.config.ensemble import EnsembleConfig
from pneumo_dist.config.experiment import DataConfig, Experiment, StageConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.doctor.findings import Finding, error, ok
from pneumo_dist.doctor.preflight import check_device, check_environment, here_checks, judged, writable
from pneumo_dist.network.fit import check_input, meta_model
from pneumo_dist.predict.ensemble import Ensemble, find_trained_folds, resolve
from pneumo_dist.predict.tta import scaled_side
from pneumo_dist.ranks.ranks import Ranks
from shards.dataset.check import SPLITS
from shards.dataset.table import Shards
from shards.errors import InputError

CHECK = "networks"


@dataclass(frozen=True)
class PredictionPlan:
    """Which networks are to predict which films. `ranks` are those of this node, None where it runs elsewhere.

    `own` is the experiment whose config was given, where it was one's.
    """

    config: EnsembleConfig
    own: Experiment | None
    shards: Path
    runs: Path
    folds: tuple[int, ...]
    ranks: int | None
    cpu: bool


def prediction_findings(asked: PredictionPlan, env: Mapping[str, str]) -> list[Finding]:
    """Return what all checks find; an error is what the prediction would end with."""
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("environment", lambda: check_environment(env)),
        (CHECK, lambda: check_networks(asked)),
        ("run folder", lambda: [ok("run folder", f"{writable(asked.runs)}: takes files")]),
    ]
    if asked.ranks is not None:
        ranks, loader = asked.ranks, asked.own or Experiment(name="default", stages=(StageConfig(name="main"),))
        checks.append(("GPU", lambda: check_device(asked.cpu, ranks, env)))
        checks += here_checks(loader, asked.shards, ranks, ranks)
    return [finding for name, look in checks for finding in judged(name, look)]


def film_counts(shards: Path) -> dict[str, int]:
    """Return how many films each split has; `oof` is that of training. Raises InputError."""
    with closing(Shards(shards)) as opened:
        return {
            "oof" if split == "train" else split: len(opened.indices(split))
            for split in SPLITS
            if split != "always_train"
        }


def check_networks(asked: PredictionPlan) -> list[Finding]:
    """Are all networks there, do they take the same input, and can they take it at all scales?"""
    alone = Ranks.alone()
    with closing(Shards(asked.shards)) as shards:
        folds = asked.folds or tuple(shards.folds())
    ensemble = resolve(
        asked.config, asked.runs, folds, alone, lambda member, fold: fold.files(member)[0].path, asked.own
    )
    _check_loader(ensemble.data)
    faults = check_sizes(ensemble, asked.config, asked.runs, folds, asked.own)
    return faults or [ok(CHECK, f"{len(ensemble.networks)} networks take {ensemble.image_size} px")]


def check_sizes(
    ensemble: Ensemble, config: EnsembleConfig, runs: Path, folds: Sequence[int], own: Experiment | None
) -> list[Finding]:
    """Return what the networks of an ensemble, which was made of the rest, cannot take at one of its scales."""
    trained = [fold for member in config.members for fold in find_trained_folds(member, runs, folds, own)]
    return [*_faults(ensemble, list(dict.fromkeys(fold.experiment.model for fold in trained)))]


def _check_loader(data: DataConfig) -> None:
    if data.loader == "synthetic":
        raise InputError("data.loader synthetic is for measuring; predict with dali or torch (--set data.loader=dali)")


def _faults(ensemble: Ensemble, models: Sequence[ModelConfig]) -> Iterator[Finding]:
    for model in models:
        network = meta_model(model)
        for scale in ensemble.tta.scales:
            side = scaled_side(ensemble.image_size, scale)
            try:
                check_input(network, ensemble.eval_batch, ensemble.in_channels, side, training=False)
            except InputError as fault:
                found = f"ensemble {ensemble.name}: {model.arch} with encoder {model.encoder} cannot take {side} px"
                yield error(CHECK, f"{found} ({fault})", "change image_size or tta.scales")
