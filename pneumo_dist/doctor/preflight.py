"""What can be known to go wrong before a training starts, looked at once, by one process."""

import os
import resource
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pneumo_dist.config.experiment import Experiment, StageConfig
from pneumo_dist.doctor import inputs, node, run_folder
from pneumo_dist.doctor.driver import driver_files, is_hidden
from pneumo_dist.doctor.findings import Finding, Status, error, guarded, ok, refused, warning
from pneumo_dist.ranks.environment import left_over
from pneumo_dist.runs.fold_run import checkpoints_of
from shards.dataset.table import Shards
from shards.errors import InputError, InputErrors

Check = tuple[str, Callable[[], list[Finding]]]


@dataclass(frozen=True)
class TrainingPlan:
    """What is to train: `folds` of the shards into `runs`; where one is not given, it is not looked at.

    `path` is the experiment's file, None for an experiment of default values. `world` None is not known yet. `ranks`
    are those of this node, None where training runs elsewhere; `on_gpu` is whether they will have GPUs.
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
    """Whether the checkpoints that stand are looked at."""

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        return self.experiment.stages

    def folder(self, fold: int) -> Path:
        """Return where a fold trains."""
        assert self.runs is not None
        return self.runs / self.experiment.name / f"fold{fold}"


def preflight(planned: TrainingPlan, env: Mapping[str, str]) -> list[Finding]:
    """Return what all checks find; an error is what training would end with."""
    return [finding for name, look in preflight_checks(planned, env) for finding in judged(name, look)]


def preflight_checks(planned: TrainingPlan, env: Mapping[str, str]) -> list[Check]:
    """Return the checks of a plan, which those of `doctor` end with."""
    checks: list[Check] = [("environment", lambda: check_environment(env))]
    if planned.path is not None:
        checks.append(("batches", lambda: _batches(planned)))
        checks.append(("network", lambda: _network(planned)))
        checks.append(("folds", lambda: check_folds(planned)))
    if _starts_anew(planned):
        checks.append(("weights", lambda: _weights(planned, env)))
    if planned.ranks is not None:
        checks += here_checks(planned.experiment, planned.shards, planned.ranks, planned.world or planned.ranks)
    return checks


def here_checks(experiment: Experiment, shards: Path | None, ranks: int, world: int) -> list[Check]:
    """Return the checks of the node that the ranks run on."""

    def files() -> list[Finding]:
        tars = inputs.train_tars(shards) if shards is not None else 0
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # to which every command raises its own
        return node.check_open_files(limit, *node.open_files(experiment, tars, world))

    return [
        ("open files", files),
        ("CPUs", lambda: node.check_cpus(node.allowed_cpus(), experiment, ranks)),
    ]


def judged(check: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    """Return what a check finds, with what it warns of; what it refuses, or the system refuses it, is an error."""

    def whole() -> list[Finding]:
        try:
            return look()
        except InputErrors as fault:
            return [refused(check, message) for message in fault.messages]
        except InputError as fault:
            return [refused(check, str(fault))]
        except OSError as fault:
            return [error(check, f"{fault.filename}: {fault.strerror}", "give another, or change its permissions")]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = guarded(check, whole)
    told = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
    return [*found, *(refused(check, message, Status.WARNING) for message in dict.fromkeys(told))]


def check_environment(env: Mapping[str, str]) -> list[Finding]:
    """Is there something that another launcher left?"""
    names = left_over(env)
    if not names:
        return []
    found = f"{', '.join(names)} of another launcher, without the others of torchrun's: this process works alone"
    return [warning("environment", found, f"unset {' '.join(names)}")]


def check_device(cpu: bool, ranks: int, env: Mapping[str, str]) -> list[Finding]:
    """Has each rank of this node the GPU that it would take? `doctor` says more of why not."""
    import torch

    if cpu:
        return []
    visible = env.get("CUDA_VISIBLE_DEVICES")
    by = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if ranks > count:
            found = f"{ranks} ranks on this node, {count} GPUs that torch sees{by}"
            return [error("ranks", found, "start one rank per GPU, ask for more GPUs, or give --cpu")]
        return [ok("ranks", f"{count} GPUs for {ranks} ranks")]
    if not driver_files().is_loaded:
        return [warning("GPU", "there is none here: the CPU is used", "give --cpu, or ask the scheduler for GPUs")]
    if is_hidden(visible):
        found = f"CUDA_VISIBLE_DEVICES={visible} hides every GPU"
        return [error("GPU", found, "unset it, or give --cpu")]
    found = f"a GPU is present, but torch cannot use it{by}"
    return [error("GPU", found, "'python -m pneumo_dist doctor' says why; or give --cpu")]


def _batches(planned: TrainingPlan) -> list[Finding]:
    from pneumo_dist.doctor.model import check_batches

    return check_batches(planned.experiment, planned.path, planned.world or 1)


def _network(planned: TrainingPlan) -> list[Finding]:
    """Look at network and room in one go: the network tells the size of its checkpoints."""
    from pneumo_dist.doctor.model import check_network, stored_bytes
    from pneumo_dist.network.fit import meta_model

    experiment = planned.experiment
    try:
        model = meta_model(experiment.model)
    except InputErrors as fault:
        raise InputErrors([f"{planned.path}: {message}" for message in fault.messages]) from None
    except InputError as fault:
        raise InputError(f"{planned.path}: {fault}") from None
    # Of a world that is not known yet, only what fails on any number of ranks is told.
    shared_norm = (planned.world or 2) if planned.on_gpu else 1
    findings = check_network(model, experiment, planned.path, shared_norm)
    if planned.runs is not None:
        findings += judged("room", lambda: _room(planned, *stored_bytes(model, experiment)))
    return findings


def writable(runs: Path) -> Path:
    """Return the runs folder, or the nearest above it that is there. Raises InputError where it takes no files."""
    folder = run_folder.existing(runs)
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file; give another --runs")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be written to; change its permissions, or give another --runs")
    return folder


def _room(planned: TrainingPlan, one: int, fold: int) -> list[Finding]:
    assert planned.runs is not None
    folder = writable(planned.runs)
    kept = sum(path.stat().st_size for each in planned.folds for path in planned.folder(each).rglob("step-*.pt"))
    needed = fold * max(1, len(planned.folds)) - kept
    return run_folder.check_room(shutil.disk_usage(folder).free, one, needed, planned.runs)


def check_folds(planned: TrainingPlan) -> list[Finding]:
    """Can each fold be planned, and go on from what stands in its folder?"""
    if planned.shards is None:
        return []
    with closing(Shards(planned.shards)) as shards:
        findings = [each for fold in planned.folds for each in _fold_findings(planned, shards, fold)]
    return list({finding.found: finding for finding in findings}.values())


def _fold_findings(planned: TrainingPlan, shards: Shards, fold: int) -> list[Finding]:
    from pneumo_dist.data.plan import check_validation, split_fold
    from pneumo_dist.ranks.ranks import Ranks
    from pneumo_dist.runs.fold_run import FoldRun
    from pneumo_dist.train.fold import check_resume

    try:
        split_fold(shards, fold, always_train=False)
    except InputError as fault:
        return [refused("folds", str(fault))]
    looks: list[Callable[[], None]] = [partial(_plan, planned, shards, fold, stage) for stage in planned.stages]
    if not planned.allow_empty_fold:
        looks.append(partial(check_validation, shards, fold))
    if planned.runs is not None and planned.resumes:
        run = FoldRun(planned.experiment, fold, shards, planned.folder(fold), Ranks.alone())
        looks.append(partial(check_resume, run))
    findings = []
    for look in looks:
        findings += judged("folds", lambda look=look: look() or [])  # type: ignore[misc]
    return findings or [ok("folds", f"fold {fold} can be trained")]


def _plan(planned: TrainingPlan, shards: Shards, fold: int, stage: StageConfig) -> None:
    from pneumo_dist.data.plan import EpochPlan, split_fold

    split = split_fold(shards, fold, stage.always_train)
    try:
        EpochPlan(split, stage, planned.experiment.seed, planned.world or 1)
    except InputError as fault:
        raise InputError(f"{planned.path}: {fault}") from None


def _starts_anew(planned: TrainingPlan) -> bool:
    """Return whether a fold starts from the config's weights, rather than a checkpoint."""
    if planned.experiment.init is not None:
        return False
    if planned.runs is None or not planned.folds:
        return True
    first = planned.stages[0].name
    return any(not checkpoints_of(planned.folder(fold), first).files() for fold in planned.folds)


def _weights(planned: TrainingPlan, env: Mapping[str, str]) -> list[Finding]:
    return inputs.check_weights(planned.experiment.model, inputs.is_cached, env)


def lines(findings: Sequence[Finding], status: Status) -> list[str]:
    """Return the findings of one kind, a line each."""
    return list(dict.fromkeys(f"{each.found}; {each.mend}" for each in findings if each.status is status))
