"""Checks of a planned training: one process finds all errors that the training would end with before it starts."""

import os
import resource
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.doctor import inputs, node, run_folder
from pneumo_dist.doctor.driver import driver_files, is_hidden
from pneumo_dist.doctor.findings import (
    ROOM,
    Check,
    Finding,
    error,
    from_message,
    ok,
    run_check,
    run_checks,
    warning,
)
from pneumo_dist.ranks.cpus import allowed_cpus, loader_threads
from pneumo_dist.ranks.environment import left_over
from pneumo_dist.runs.fold_run import checkpoints_of
from shards.console import counted
from shards.dataset.table import Shards
from shards.errors import InputError, InputErrors

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TrainingPlan:
    """A planned training.

    Attributes:
        experiment: The experiment to train.
        path: The experiment's file, None for an experiment with default values.
        shards: Folder of the shards, None to skip their checks.
        runs: Folder of all runs, None to skip its checks.
        folds: Folds to train.
        world: World size, None if unknown.
        ranks: Number of ranks on this node, None if training runs elsewhere.
        on_gpu: Whether the ranks will have GPUs.
        allow_empty_fold: Whether a fold may have no positive film to validate on.
        resumes: Whether to check that training can resume from the existing checkpoints.
    """

    experiment: Experiment
    path: Path | None
    shards: Path | None
    runs: Path | None
    folds: tuple[int, ...]
    world: int | None
    ranks: int | None
    on_gpu: bool
    allow_empty_fold: bool = False
    resumes: bool = True

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        return self.experiment.stages

    def folder(self, fold: int) -> Path:
        """Return the folder that a fold trains in."""
        assert self.runs is not None
        return self.runs / self.experiment.name / f"fold{fold}"


def preflight(plan: TrainingPlan, env: Mapping[str, str]) -> list[Finding]:
    """Run all checks of a plan. Each error is one that training would fail with."""
    return run_checks(preflight_checks(plan, env))


def preflight_checks(plan: TrainingPlan, env: Mapping[str, str]) -> list[Check]:
    """Return the checks of a plan. `doctor` runs them after its own."""
    checks: list[Check] = [("environment", lambda: check_environment(env))]
    if plan.path is not None:
        checks.append(("batches", lambda: _batches(plan)))
        checks.append(("network", lambda: _network(plan)))
        checks.append(("folds", lambda: check_folds(plan)))
    if _needs_weights(plan):
        checks.append(("weights", lambda: _weights(plan.experiment, env)))
    if plan.ranks is not None:
        checks += node_checks(plan.experiment, plan.shards, plan.ranks, plan.world or plan.ranks)
        if plan.on_gpu:
            checks.append(("decoding", lambda: _decoding(plan)))
    return checks


def node_checks(experiment: Experiment, shards: Path | None, ranks: int, world: int) -> list[Check]:
    """Return the checks that only make sense on the node that the ranks run on."""

    def open_files() -> list[Finding]:
        tars = inputs.train_tars(shards) if shards is not None else 0
        hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        threads = loader_threads(experiment.data.threads, allowed_cpus(), ranks)
        return node.check_open_files(hard_limit, *node.open_files(experiment, tars, world, threads))

    return [
        ("open files", open_files),
        ("CPUs", lambda: node.check_cpus(allowed_cpus(), experiment, ranks)),
    ]


def _decoding(plan: TrainingPlan) -> list[Finding]:
    if plan.shards is None or plan.ranks is None:
        return []
    with closing(Shards(plan.shards)) as shards:
        return node.check_decoding(allowed_cpus(), node.decoding_cpus(shards, plan.experiment), plan.ranks)


def check_environment(env: Mapping[str, str]) -> list[Finding]:
    """Check for variables that another launcher left behind."""
    names = left_over(env)
    if not names:
        return []
    message = f"{', '.join(names)} set by another launcher, but not all of torchrun's variables: ignored"
    return [warning("environment", message, f"unset {' '.join(names)}")]


def check_device(cpu: bool, ranks: int, env: Mapping[str, str]) -> list[Finding]:
    """Check that each rank on this node gets a GPU. `doctor` explains in detail why one is unusable."""
    import torch

    if cpu:
        return []
    visible = env.get("CUDA_VISIBLE_DEVICES")
    suffix = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
    if torch.cuda.is_available():
        gpus = counted(torch.cuda.device_count(), "GPU")
        if ranks > torch.cuda.device_count():
            message = f"{ranks} ranks on this node, but torch sees {gpus}{suffix}"
            return [error("ranks", message, "start one rank per GPU, ask for more GPUs, or pass --cpu")]
        return [ok("ranks", f"{gpus} for {counted(ranks, 'rank')}")]
    if not driver_files().is_loaded:
        return [warning("GPU", "this node has no GPU: the CPU is used", "pass --cpu, or ask the scheduler for GPUs")]
    if is_hidden(visible):
        message = f"CUDA_VISIBLE_DEVICES={visible} hides every GPU"
        return [error("GPU", message, "unset it, or pass --cpu")]
    message = f"a GPU is present, but torch cannot use it{suffix}"
    return [error("GPU", message, "see 'python -m pneumo_dist doctor' for the reason, or pass --cpu")]


def _batches(plan: TrainingPlan) -> list[Finding]:
    from pneumo_dist.doctor.model import check_batches

    return check_batches(plan.experiment, plan.path, plan.world or 1)


def _network(plan: TrainingPlan) -> list[Finding]:
    """Check the network, and the disk space for its checkpoints, whose size depends on it."""
    from pneumo_dist.doctor.model import check_network, check_norms
    from pneumo_dist.network.fit import meta_model

    experiment = plan.experiment
    try:
        model = meta_model(experiment.model)
    except InputErrors as exception:
        raise InputErrors([f"{plan.path}: {message}" for message in exception.messages]) from None
    except InputError as exception:
        raise InputError(f"{plan.path}: {exception}") from None
    # With an unknown world size, only report what fails for any number of ranks.
    shared_norm = plan.world or 2
    findings = check_network(model, experiment, plan.path, shared_norm)
    findings += check_norms(model, experiment, plan.path, plan.world or 1, plan.on_gpu)
    if plan.runs is not None:
        findings += run_check(ROOM, lambda: _room(plan, model))
    return findings


def check_writable(runs: Path) -> Path:
    """Return the runs folder, or its nearest existing parent. Raises InputError if it cannot be written to."""
    folder = run_folder.nearest_existing(runs)
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file; give another --runs")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be written to; change its permissions, or give another --runs")
    return folder


def _room(plan: TrainingPlan, model: "torch.nn.Module") -> list[Finding]:
    from pneumo_dist.doctor.room import check_training_room, stage_files

    assert plan.runs is not None
    free = shutil.disk_usage(check_writable(plan.runs)).free
    folders = [plan.folder(fold) for fold in plan.folds]
    return check_training_room(stage_files(model, plan.experiment), plan.runs, folders, free)


def check_folds(plan: TrainingPlan) -> list[Finding]:
    """Check that each fold can be trained, and can resume from the checkpoints in its folder."""
    if plan.shards is None:
        return []
    with closing(Shards(plan.shards)) as shards:
        findings = [finding for fold in plan.folds for finding in _fold_findings(plan, shards, fold)]
    return list({finding.message: finding for finding in findings}.values())


def _fold_findings(plan: TrainingPlan, shards: Shards, fold: int) -> list[Finding]:
    from pneumo_dist.data.plan import check_validation, split_fold
    from pneumo_dist.ranks.ranks import Ranks
    from pneumo_dist.runs.fold_run import FoldRun
    from pneumo_dist.train.fold import check_resume

    try:
        split_fold(shards, fold, always_train=False)
    except InputError as exception:
        return [from_message("folds", str(exception))]
    checks: list[Callable[[], None]] = [partial(_check_epochs, plan, shards, fold, stage) for stage in plan.stages]
    if not plan.allow_empty_fold:
        checks.append(partial(check_validation, shards, fold))
    if plan.runs is not None and plan.resumes:
        run = FoldRun(plan.experiment, fold, shards, plan.folder(fold), Ranks.alone())
        checks.append(partial(check_resume, run))
    findings = []
    for check in checks:
        findings += run_check("folds", lambda check=check: check() or [])  # type: ignore[misc]
    return findings or [ok("folds", f"fold {fold} can be trained")]


def _check_epochs(plan: TrainingPlan, shards: Shards, fold: int, stage: StageConfig) -> None:
    """Raise InputError if the epochs of a stage cannot be planned."""
    from pneumo_dist.data.plan import EpochPlan, split_fold

    split = split_fold(shards, fold, stage.always_train)
    try:
        EpochPlan(split, stage, plan.experiment.seed, plan.world or 1)
    except InputError as exception:
        raise InputError(f"{plan.path}: {exception}") from None


def _weights(experiment: Experiment, env: Mapping[str, str]) -> list[Finding]:
    if experiment.init is not None:
        return inputs.check_init_file(experiment)
    return inputs.check_weights(experiment.model, inputs.is_cached, env)


def _needs_weights(plan: TrainingPlan) -> bool:
    """Return whether a fold starts from the config's weights rather than from a checkpoint."""
    if plan.experiment.init is not None and plan.experiment.init.file is None:
        return False
    if plan.runs is None or not plan.folds:
        return True
    first = plan.stages[0].name
    return any(not checkpoints_of(plan.folder(fold), first).files() for fold in plan.folds)
