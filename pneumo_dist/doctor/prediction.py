"""Checks of a planned prediction: that its networks exist and accept their inputs."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pneumo_dist.config.ensemble import EnsembleConfig
from pneumo_dist.config.experiment import DataConfig, Experiment
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.doctor.findings import ROOM, Check, Finding, error, ok, run_checks
from pneumo_dist.doctor.preflight import check_device, check_environment, check_writable, node_checks
from pneumo_dist.doctor.room import check_prediction_room, map_bytes
from pneumo_dist.network.fit import check_input, checkpoint_bytes, meta_model
from pneumo_dist.predict.ensemble import Ensemble, NetworkInput, find_trained_folds, resolve
from pneumo_dist.predict.tta import scaled_side
from pneumo_dist.ranks.ranks import Ranks
from shards.dataset.table import Shards
from shards.errors import InputError

CHECK = "networks"


@dataclass(frozen=True)
class PredictionPlan:
    """A planned prediction.

    Attributes:
        config: The ensemble that predicts.
        experiment: The experiment, if the config is one rather than an ensemble.
        shards: Folder of the shards to predict.
        runs: Folder of all runs.
        folds: Folds that predict, empty for all.
        ranks: Number of ranks on this node, None if the prediction runs elsewhere.
        cpu: Whether to predict on the CPU.
    """

    config: EnsembleConfig
    experiment: Experiment | None
    shards: Path
    runs: Path
    folds: tuple[int, ...]
    ranks: int | None
    cpu: bool


def prediction_findings(plan: PredictionPlan, env: Mapping[str, str]) -> list[Finding]:
    """Run all checks of a plan. Each error is one that the prediction would fail with."""
    checks: list[Check] = [
        ("environment", lambda: check_environment(env)),
        (CHECK, lambda: check_networks(plan)),
        ("run folder", lambda: [ok("run folder", f"{check_writable(plan.runs)}: is writable")]),
        (ROOM, lambda: _room(plan)),
    ]
    if plan.ranks is not None:
        ranks = plan.ranks
        experiment = plan.experiment or Experiment(name="default", stages=(StageConfig(name="main"),))
        checks.append(("GPU", lambda: check_device(plan.cpu, ranks, env)))
        checks += node_checks(experiment, plan.shards, ranks, ranks)
    return run_checks(checks)


def film_counts(shards: Path) -> dict[str, int]:
    """Return the number of films of each split that can be predicted; the training split is called `oof`.

    Films without labels are only counted if there are some. Raises InputError for shards that cannot be read.
    """
    with closing(Shards(shards)) as opened:
        counts = {split: len(opened.indices(split)) for split in ("train", "holdout", "test", "unlabelled")}
    counts = {"oof": counts.pop("train"), **counts}
    return {split: count for split, count in counts.items() if count or split != "unlabelled"}


def check_networks(plan: PredictionPlan) -> list[Finding]:
    """Check that all networks exist, and that they accept their inputs at all scales."""
    single_rank = Ranks.alone()
    folds = _folds(plan)
    ensemble = resolve(
        plan.config, plan.runs, folds, single_rank, lambda member, fold: fold.files(member)[0].path, plan.experiment
    )
    _check_loader(ensemble.data)
    errors = check_sizes(ensemble, plan.config, plan.runs, folds, plan.experiment)
    sides = ", ".join(f"{side} px" for side in sorted({each.image_size for each in ensemble.inputs}))
    return errors or [ok(CHECK, f"{len(ensemble.networks)} networks accept {sides}")]


def _room(plan: PredictionPlan) -> list[Finding]:
    """Check the room for the maps of all splits, and for averaged weights. Errors are those of the other checks."""
    try:
        pairs = [
            (member, fold)
            for member in plan.config.members
            for fold in find_trained_folds(member, plan.runs, _folds(plan), plan.experiment)
        ]
        films, free = sum(film_counts(plan.shards).values()), shutil.disk_usage(check_writable(plan.runs)).free
    except InputError:
        return []
    side = plan.config.image_size or max(fold.input(member).image_size for member, fold in pairs)
    averaged = [fold.experiment.model for member, fold in pairs if member.average == "weights"]
    weights = sum(checkpoint_bytes(meta_model(model), copies=1) for model in averaged)
    return check_prediction_room(map_bytes(films, side), weights, plan.runs, free)


def _folds(plan: PredictionPlan) -> tuple[int, ...]:
    with closing(Shards(plan.shards)) as shards:
        return plan.folds or tuple(shards.folds())


def check_sizes(
    ensemble: Ensemble, config: EnsembleConfig, runs: Path, folds: Sequence[int], experiment: Experiment | None
) -> list[Finding]:
    """Return an error for each network and scale of an ensemble that do not fit together.

    The other arguments are those that the ensemble was resolved from.
    """
    pairs = [
        (fold.experiment.model, fold.input(member), (member.tta or config.tta).scales)
        for member in config.members
        for fold in find_trained_folds(member, runs, folds, experiment)
    ]
    return [*_size_errors(ensemble, list(dict.fromkeys(pairs)))]


def _check_loader(data: DataConfig) -> None:
    if data.loader == "synthetic":
        raise InputError(
            "data.loader synthetic is only for measuring; predict with dali or torch (--set data.loader=dali)"
        )


def _size_errors(
    ensemble: Ensemble, pairs: Sequence[tuple[ModelConfig, NetworkInput, tuple[float, ...]]]
) -> Iterator[Finding]:
    for model, network_input, scales in pairs:
        network = meta_model(model)
        for scale in scales:
            side = scaled_side(network_input.image_size, scale)
            try:
                check_input(network, ensemble.eval_batch, network_input.in_channels, side, training=False)
            except InputError as exception:
                name = f"{model.arch} with encoder {model.encoder}"
                message = f"ensemble {ensemble.name}: {name} does not accept {side} px ({exception})"
                yield error(CHECK, message, "change the member's image_size or tta.scales")
