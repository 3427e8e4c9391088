"""Checks that the configured network can train on its stages' batches."""

from collections.abc import Iterator

import torch

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.stage import BatchError, StageConfig, accumulation
from pneumo_dist.doctor.findings import Finding, error, from_message, ok, warning
from pneumo_dist.network.fit import OneValue, check_input
from shards.errors import InputError

CHECK = "network"


def check_network(model: torch.nn.Module, experiment: Experiment, path: object, shared_norm: int) -> list[Finding]:
    """Check that each stage can train the network with its batch size and image size.

    Args:
        model: The network, on the meta device.
        experiment: The experiment, whose stages are checked.
        path: Path of the config, for messages.
        shared_norm: Number of ranks that a synchronised batch norm spans.
    """
    findings: dict[str, Finding] = {}
    for stage in experiment.stages:
        for finding in _stage_errors(model, experiment, stage, f"{path}: stage {stage.name}", shared_norm):
            findings.setdefault(finding.message, finding)
    if findings:
        return list(findings.values())
    weights = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    sizes = ", ".join(dict.fromkeys(f"{stage.micro_batch} x {stage.image_size} px" for stage in experiment.stages))
    return [ok(CHECK, f"{_name(experiment)}, {weights:.1f} million weights, accepts micro-batches of {sizes}")]


def _stage_errors(
    model: torch.nn.Module, experiment: Experiment, stage: StageConfig, where: str, shared_norm: int
) -> Iterator[Finding]:
    micro_batch = stage.micro_batch * (shared_norm if experiment.model.sync_batch_norm else 1)
    # Whether the batch norms take their statistics from the batch: of averaged weights, evaluation batches give them.
    batches = [("micro_batch", micro_batch, "image_size", stage.image_size, True)]
    if stage.optim.swa_epochs is not None or stage.eval_image_size is not None:
        side = "image_size" if stage.eval_image_size is None else "eval_image_size"
        batches.append(("eval_batch", stage.eval_batch, side, stage.film_size, stage.optim.swa_epochs is not None))
    for key, count, side, size, has_statistics in batches:
        try:
            check_input(model, count, experiment.model.in_channels, size, training=has_statistics)
        except OneValue:
            message = f"{where}: with {key} {count} and {side} {size}, a batch norm of {_name(experiment)} has one"
            yield error(CHECK, f"{message} value per channel, but needs two", f"set {key}: 2 or more")
        except InputError as exception:
            message = f"{where}: {_name(experiment)} does not accept {side} {size} ({exception})"
            yield error(CHECK, message, f"set another {side}, or change model.*")
            return


def check_norms(
    model: torch.nn.Module, experiment: Experiment, path: object, world: int, on_gpu: bool
) -> list[Finding]:
    """Warn if batch norms take the statistics of one film, although a step has several films on several ranks."""
    stages = [stage.name for stage in experiment.stages if stage.micro_batch == 1 and stage.global_batch > 1]
    has_norms = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if world < 2 or experiment.model.sync_batch_norm or not stages or not has_norms:
        return []
    message = f"{path}: with micro_batch 1 on {world} ranks, batch norms see one film at a time, not the whole batch"
    fix = f"set model.sync_batch_norm: true, or train on one {'GPU' if on_gpu else 'rank'}"
    return [warning(CHECK, f"{message} (stages {', '.join(stages)})", fix)]


def _name(experiment: Experiment) -> str:
    model = experiment.model
    return model.arch if model.arch == "fcn" else f"{model.arch} with encoder {model.encoder}"


def check_batches(experiment: Experiment, path: object, world: int) -> list[Finding]:
    """Check that each stage's batch can be divided among the ranks."""
    findings = []
    for stage in experiment.stages:
        try:
            accumulation(stage, world)
        except BatchError as exception:
            findings.append(from_message("batches", f"{path}: {exception}"))
    return findings
