"""Ensembles: the networks that predict together, their files, their common input and their weights."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pneumo_dist.config.ensemble import EnsembleConfig, MemberConfig, TtaConfig
from pneumo_dist.config.experiment import DataConfig, Experiment, StageConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.data.films import InputSpec
from pneumo_dist.network.build import build_model
from pneumo_dist.network.tensors import load_weights
from pneumo_dist.predict.trained import check_trained_alike, trained_experiment
from pneumo_dist.ranks.precision import Resolved
from pneumo_dist.ranks.ranks import Ranks, on_rank_0
from pneumo_dist.runs.checkpoint import CheckpointFile, load_checkpoint, weights_of
from pneumo_dist.runs.repetitions import best_repetition
from pneumo_dist.runs.state import experiment_of
from shards.errors import InputError


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network: architecture, weights, autocast type of the training, and lineage."""

    model: ModelConfig
    weights: dict[str, torch.Tensor]
    amp: Resolved
    lineage: Sequence[dict[str, Any]]

    def build(self, name: str) -> torch.nn.Module:
        """Build the network on the CPU and load its weights. Raises InputError if they do not fit."""
        model = build_model(self.model, pretrained=False)
        load_weights(model, self.weights, name)
        return model.eval()


@dataclass(frozen=True)
class EnsembleNetwork:
    """A network of an ensemble; its name says where it comes from and contains a digest of its content.

    `weight` is that of its member, which the member's networks share. `read` loads the network.
    """

    name: str
    member: int
    fold: int
    weight: float
    read: Callable[[], TrainedNetwork]


@dataclass(frozen=True)
class Ensemble:
    """Networks that predict together, and their input. If `amp` is None, each uses the type of its training."""

    name: str
    networks: tuple[EnsembleNetwork, ...]
    image_size: int
    in_channels: int
    data: DataConfig
    eval_batch: int
    tta: TtaConfig
    amp: str | None = None

    def __post_init__(self) -> None:
        if not self.networks:  # the mean of no maps would leave every film empty
            raise InputError(f"ensemble {self.name}: has no network")

    def input_spec(self, ranks: Ranks) -> InputSpec:
        """Return the input of the networks on a rank."""
        return InputSpec(self.image_size, self.in_channels, self.data, ranks.device_id)


def shares(networks: Sequence[EnsembleNetwork]) -> list[float]:
    """Return each network's share of the mean: its member's weight, divided among the member's networks."""
    count = Counter(network.member for network in networks)
    total = sum({network.member: network.weight for network in networks}.values())
    return [network.weight / count[network.member] / total for network in networks]


@dataclass(frozen=True)
class TrainedFold:
    """A trained fold of a member: its experiment, stage, number and folder."""

    experiment: Experiment
    stage: StageConfig
    number: int
    folder: Path

    def files(self, member: MemberConfig) -> list[CheckpointFile]:
        """Return the checkpoints that the member takes, best first. Raises InputError where there are none."""
        checkpoints = best_repetition(self.stage, self.folder)
        if member.checkpoints == "last":
            newest = checkpoints.newest()
            if newest is None:
                raise InputError(f"{checkpoints}: no checkpoints; train that fold first")
            return [newest]
        return checkpoints.top(1 if member.checkpoints == "best" else member.top_k or self.stage.top_k)


def find_trained_folds(
    member: MemberConfig, runs: Path, folds: Sequence[int], current: Experiment | None = None
) -> list[TrainedFold]:
    """Return a member's trained folds: its own list, else `folds`, else all of them.

    Args:
        current: The experiment of a config given by the user; it decides how films are read.

    Raises:
        InputError: A fold was not trained, or the folds were trained with different settings.
    """
    run = runs / member.experiment
    chosen = member.folds or folds or fold_numbers(run)
    if len(set(chosen)) != len(chosen):
        raise InputError(
            f"folds {', '.join(map(str, chosen))}: a fold that is named twice would count twice; name each once"
        )
    if not chosen:
        raise InputError(f"{run}: no trained folds; train experiment {member.experiment} first, or give its --runs")
    trained = []
    for fold in chosen:
        folder = run / f"fold{fold}"
        if not (folder / "config.yaml").exists():
            raise InputError(f"{folder}: not trained; train that fold first, or name the folds that are")
        experiment, stage = trained_experiment(folder, member.stage, current)
        trained.append(TrainedFold(experiment, stage, fold, folder))
    check_trained_alike([(fold.folder, fold.experiment) for fold in trained])
    return trained


def agreed_files(trained_fold: TrainedFold, member: MemberConfig, ranks: Ranks) -> list[Path]:
    """Return the checkpoints of a fold that a member uses, best first, as rank 0 finds them."""
    return [Path(path) for path in on_rank_0(ranks, lambda: [str(file.path) for file in trained_fold.files(member)])]


def fold_numbers(run: Path) -> list[int]:
    """Return the numbers of the folds in a run's folder."""
    names = [path.parent.name.removeprefix("fold") for path in run.glob("fold*/config.yaml")]
    return sorted(int(name) for name in names if name.isdigit())


def read_network(path: Path) -> TrainedNetwork:
    """Load a checkpoint's network. Raises InputError if it is damaged."""
    state = load_checkpoint(path)
    return TrainedNetwork(experiment_of(state, path).model, weights_of(state), state["amp"], state["lineage"])


def resolve(
    config: EnsembleConfig,
    runs: Path,
    folds: Sequence[int],
    ranks: Ranks,
    averaged: Callable[[MemberConfig, TrainedFold], Path],
    current: Experiment | None = None,
) -> Ensemble:
    """Find an ensemble's networks. Rank 0 decides, so that all ranks use the same files.

    Args:
        averaged: Returns the checkpoint of a fold's averaged weights.
        current: The experiment of a config given by the user; see `find_trained_folds`.

    Raises:
        InputError: A fold has no checkpoints, or the members' networks have different inputs.
    """
    members = [find_trained_folds(member, runs, folds, current) for member in config.members]
    networks: list[EnsembleNetwork] = []
    for number, (member, trained_folds) in enumerate(zip(config.members, members, strict=True)):
        for trained_fold in trained_folds:
            is_averaged = member.average == "weights"
            paths = [averaged(member, trained_fold)] if is_averaged else agreed_files(trained_fold, member, ranks)
            for path in paths:
                name = f"{member.experiment}/fold{trained_fold.number}/{path.name}"
                networks.append(
                    EnsembleNetwork(name, number, trained_fold.number, member.weight, partial(read_network, path))
                )
    all_folds = [fold for trained_folds in members for fold in trained_folds]
    first = all_folds[0]
    return Ensemble(
        name=config.name,
        networks=tuple(networks),
        image_size=config.image_size
        or _common(all_folds, lambda fold: fold.stage.image_size, "stage.image_size", config),
        in_channels=_common(all_folds, lambda fold: fold.experiment.model.in_channels, "model.in_channels", config),
        data=first.experiment.data.model_copy(
            update={
                "mean": _common(all_folds, lambda fold: fold.experiment.data.mean, "data.mean", config),
                "std": _common(all_folds, lambda fold: fold.experiment.data.std, "data.std", config),
                **({"loader": config.loader} if config.loader else {}),
            }
        ),
        eval_batch=config.eval_batch or min(fold.stage.eval_batch for fold in all_folds),
        tta=config.tta,
        amp=config.amp,
    )


def _common(
    trained_folds: Sequence[TrainedFold], value: Callable[[TrainedFold], Any], key: str, config: EnsembleConfig
) -> Any:
    """Return the value that all trained folds share. Raises InputError, naming two that differ."""
    first = trained_folds[0]
    for other in trained_folds:
        if value(other) != value(first):
            fix = "set image_size in the ensemble" if key == "stage.image_size" else "predict them apart"
            raise InputError(
                f"ensemble {config.name}: {key} is {value(first)} in {first.experiment.name} and {value(other)} in "
                f"{other.experiment.name}; {fix}"
            )
    return value(first)
