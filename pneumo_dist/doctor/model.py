"""Whether the configured network takes what the stages give it, and how large its checkpoints are."""

from collections.abc import Iterator

import torch

from pneumo_dist.config.experiment import BatchError, Experiment, StageConfig, accumulation
from pneumo_dist.doctor.findings import Finding, error, ok
from pneumo_dist.network.fit import OneValue, check_input, checkpoint_bytes
from pneumo_dist.runs.checkpoint_folder import NEWEST_KEPT
from shards.errors import InputError

CHECK = "network"


def check_network(model: torch.nn.Module, experiment: Experiment, path: object, shared_norm: int) -> list[Finding]:
    """Can each stage train `model`, which is on the meta device, with its batches and size?

    A synchronised batch norm sees the films of `shared_norm` ranks at once. `path` is the config's.
    """
    findings: dict[str, Finding] = {}
    for stage in experiment.stages:
        for finding in _stage_faults(model, experiment, stage, f"{path}: stage {stage.name}", shared_norm):
            findings.setdefault(finding.found, finding)
    if findings:
        return list(findings.values())
    weights = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    sizes = ", ".join(dict.fromkeys(f"{stage.micro_batch} x {stage.image_size} px" for stage in experiment.stages))
    return [ok(CHECK, f"{_name(experiment)}, {weights:.1f} million weights, takes micro-batches of {sizes}")]


def _stage_faults(
    model: torch.nn.Module, experiment: Experiment, stage: StageConfig, where: str, shared_norm: int
) -> Iterator[Finding]:
    channels, size = experiment.model.in_channels, stage.image_size
    films = {"micro_batch": stage.micro_batch * (shared_norm if experiment.model.sync_batch_norm else 1)}
    if stage.optim.swa_epochs is not None:
        films["eval_batch"] = stage.eval_batch  # over which an average's batch-norm statistics are measured
    for key, count in films.items():
        try:
            check_input(model, count, channels, size, training=True)
        except OneValue:
            found = (
                f"{where}: with {key} {count} and image_size {size} a batch norm of {_name(experiment)} has one value"
            )
            yield error(CHECK, f"{found} a channel, and needs two", f"set {key}: 2 or more")
        except InputError as fault:
            found = f"{where}: {_name(experiment)} cannot take image_size {size} ({fault})"
            yield error(CHECK, found, "set another image_size, or model.*")
            return


def _name(experiment: Experiment) -> str:
    model = experiment.model
    return model.arch if model.arch == "fcn" else f"{model.arch} with encoder {model.encoder}"


def check_batches(experiment: Experiment, path: object, world: int) -> list[Finding]:
    """Can each stage's batch be divided over the ranks?"""
    findings = []
    for stage in experiment.stages:
        try:
            accumulation(stage, world)
        except BatchError as fault:
            found, _, mend = str(fault).rpartition("; ")
            findings.append(error("batches", f"{path}: {found}", mend))
    return findings


def stored_bytes(model: torch.nn.Module, experiment: Experiment) -> tuple[int, int]:
    """Return the size of the largest checkpoint, and that of all that a fold keeps at a time, in bytes."""
    sizes = [checkpoint_bytes(model, _copies(stage)) for stage in experiment.stages]
    kept = [stage.top_k + NEWEST_KEPT for stage in experiment.stages]
    return max(sizes), sum(size * count for size, count in zip(sizes, kept, strict=True)) + max(sizes)


def _copies(stage: StageConfig) -> int:
    """Return how many values a checkpoint holds for each weight: its own, the optimizer's, the average's."""
    is_averaged = stage.optim.ema_decay is not None or stage.optim.swa_epochs is not None
    return 1 + (1 if stage.optim.name == "sgd" else 2) + is_averaged
