"""Ensembles: the networks that predict together, their files, their inputs and their weights."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pneumo_dist.config.ensemble import EnsembleConfig, MemberConfig, TtaConfig
from pneumo_dist.config.experiment import DataConfig, Experiment
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.config.stage import StageConfig
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
class NetworkInput:
    """What a network takes: side in pixels, channels, and mean and standard deviation on a scale of 0 to 1.

    Networks with equal inputs see the same batches of films.
    """

    image_size: int
    in_channels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class EnsembleNetwork:
    """A network of an ensemble; its name says where it comes from and contains a digest of its content.

    `weight` is that of its member, which the member's networks share. `model` says how large the network is before
    `read` loads it. Members with the same checkpoint have networks of the same name. `tta` is the member's own; None is
    that of the ensemble.
    """

    name: str
    member: int
    fold: int
    weight: float
    input: NetworkInput
    model: ModelConfig
    read: Callable[[], TrainedNetwork]
    tta: TtaConfig | None = None


@dataclass(frozen=True)
class Ensemble:
    """Networks that predict together, and how.

    Attributes:
        name: Name of the ensemble.
        networks: The networks; their inputs may differ.
        image_size: Side of the stored maps, if a network is a segmenter.
        data: How films are read. The normalisation is that of each network's input.
        eval_batch: Films per forward pass.
        tta: Test-time augmentation.
        amp: Autocast type; None is the type that each network was trained with.
        members: The members with all defaults resolved, which stored out-of-fold predictions name; empty for a bundle.
    """

    name: str
    networks: tuple[EnsembleNetwork, ...]
    image_size: int
    data: DataConfig
    eval_batch: int
    tta: TtaConfig
    amp: str | None = None
    members: tuple[MemberConfig, ...] = ()

    def __post_init__(self) -> None:
        if not self.networks:  # the mean of no maps would leave every film empty
            raise InputError(f"ensemble {self.name}: has no network")

    @property
    def has_maps(self) -> bool:
        """Whether a network is a segmenter."""
        return not all(network.model.is_classifier for network in self.networks)

    @property
    def inputs(self) -> list[NetworkInput]:
        """The distinct inputs of the networks, in the order of the networks."""
        return distinct_inputs(self.networks)

    @property
    def film_size(self) -> int:
        """The side that stored films need, which is that of the largest input."""
        return max(each.image_size for each in self.inputs)

    def input_spec(self, network_input: NetworkInput, ranks: Ranks) -> InputSpec:
        """Return what a loader must know on a rank to read films for an input."""
        data = self.data.model_copy(update={"mean": network_input.mean, "std": network_input.std})
        return InputSpec(network_input.image_size, network_input.in_channels, data, ranks.device_id)


def distinct_inputs(networks: Sequence[EnsembleNetwork]) -> list[NetworkInput]:
    """Return each input of some networks once, in the order of the networks."""
    return list(dict.fromkeys(network.input for network in networks))


def shares(networks: Sequence[EnsembleNetwork]) -> list[float]:
    """Return each network's share of the mean: its member's weight, divided among the member's networks."""
    count = Counter(network.member for network in networks)
    total = sum({network.member: network.weight for network in networks}.values())
    return [network.weight / count[network.member] / total for network in networks]


def map_shares(networks: Sequence[EnsembleNetwork]) -> list[float]:
    """Return each network's share of the mean map: that of `shares` among the segmenters, and 0 for a classifier.

    Networks that are all classifiers have the shares of the mean class probability.
    """
    segmenters = [network for network in networks if not network.model.is_classifier]
    if len(segmenters) in (0, len(networks)):
        return shares(networks)
    found = iter(shares(segmenters))
    return [0.0 if network.model.is_classifier else next(found) for network in networks]


@dataclass(frozen=True)
class TrainedFold:
    """A trained fold of a member: its experiment, stage, number and folder."""

    experiment: Experiment
    stage: StageConfig
    number: int
    folder: Path

    def files(self, member: MemberConfig) -> list[CheckpointFile]:
        """Return the checkpoints that the member takes, best first.

        Raises InputError where there are none, or the newest is damaged: training falls back to an older one, but the
        mean of other networks than those that were trained must not pass for theirs.
        """
        checkpoints = best_repetition(self.stage, self.folder)
        checkpoints.check_newest()
        if member.checkpoints == "last":
            newest = checkpoints.newest()
            if newest is None:
                raise InputError(f"{checkpoints}: no checkpoints; train that fold first")
            return [newest]
        count = 1 if member.checkpoints == "best" else member.top_k or self.stage.top_k
        found = checkpoints.top(count)
        if member.checkpoints != "nth":
            return found
        if len(found) < count:
            raise InputError(
                f"{checkpoints}: has {len(found)} validated checkpoints, and the {count}-th best is asked for"
            )
        return found[-1:]

    def input(self, member: MemberConfig) -> NetworkInput:
        """Return the input of the fold's networks: that of the validation, at the member's own side if it has one."""
        model, data = self.experiment.model, self.experiment.data
        return NetworkInput(member.image_size or self.stage.film_size, model.in_channels, data.mean, data.std)


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


def _segmenters(networks: Sequence[EnsembleNetwork]) -> Sequence[EnsembleNetwork]:
    """Return the networks with maps; all networks if none has one."""
    return [network for network in networks if not network.model.is_classifier] or networks


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
        InputError: A fold has no checkpoints.
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
                    EnsembleNetwork(
                        name,
                        number,
                        trained_fold.number,
                        member.weight,
                        trained_fold.input(member),
                        trained_fold.experiment.model,
                        partial(read_network, path),
                        member.tta,
                    )
                )
    data = members[0][0].experiment.data
    return Ensemble(
        name=config.name,
        networks=tuple(networks),
        image_size=config.image_size or max(network.input.image_size for network in _segmenters(networks)),
        data=data.model_copy(update={"loader": config.loader}) if config.loader else data,
        eval_batch=config.eval_batch or min(fold.stage.eval_batch for folds in members for fold in folds),
        tta=config.tta,
        amp=config.amp,
        members=tuple(
            _resolved(member, folds[0], config) for member, folds in zip(config.members, members, strict=True)
        ),
    )


def _resolved(member: MemberConfig, trained_fold: TrainedFold, config: EnsembleConfig) -> MemberConfig:
    """Return a member with the stage, number of checkpoints and views that it has by default."""
    counts = member.checkpoints in ("top-k", "nth")
    return member.model_copy(
        update={
            "stage": trained_fold.stage.name,
            "top_k": (member.top_k or trained_fold.stage.top_k) if counts else None,
            "tta": member.tta or config.tta,
        }
    )
