"""What train and predict look at before they start, and what --dry-run prints of it."""

import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pneumo_dist import __version__
from pneumo_dist.config.load import LoadedConfig, dump_resolved
from pneumo_dist.doctor.findings import Finding, Status
from pneumo_dist.doctor.network import check_meeting, local_address
from pneumo_dist.doctor.preflight import TrainingPlan, check_device, judged, lines, preflight
from pneumo_dist.runs.heartbeat import is_finished
from pneumo_dist.source import source_digest
from shards.dataset.table import Shards
from shards.errors import InputError, InputErrors

if TYPE_CHECKING:
    from pneumo_dist.doctor.prediction import PredictionPlan


@dataclass(frozen=True)
class Training:
    """What the command line of train asks for; `world` None is not known yet, `ranks` None are not of this node.

    `meeting` is where several nodes meet, as HOST:PORT, and the number of this one.
    """

    config: LoadedConfig
    shards: Path | None
    runs: Path
    folds: tuple[int, ...]
    cpu: bool
    allow_empty_fold: bool
    world: int | None
    ranks: int | None
    meeting: tuple[str, int] | None = None

    def folder(self, fold: int) -> Path:
        """Return where a fold trains."""
        return self.runs / self.config.experiment.name / f"fold{fold}"


def facts_of(config: LoadedConfig, shards: Shards | None) -> dict[str, str]:
    """Return what all ranks must agree on, and what a finished fold was trained with."""
    return {
        "code": f"{__version__}, source {source_digest()}",
        "config": hashlib.sha256(config.experiment.model_dump_json().encode()).hexdigest(),
        "shards": shards.manifest["table_sha256"] if shards is not None else "",
    }


def check_training(training: Training, resumes: bool = True) -> list[str]:
    """Look at all that training may end with; return what it can run with, a line each. Raises InputErrors.

    Without `resumes` the checkpoints that stand are left to training, which looks at them itself.
    """
    trained = _trained(training)
    planned = TrainingPlan(
        training.config.experiment,
        training.config.path,
        training.shards,
        training.runs,
        tuple(fold for fold in training.folds if fold not in trained),
        training.world,
        training.ranks,
        _on_gpu(training),
        training.allow_empty_fold,
        resumes,
    )
    findings = preflight(planned, os.environ)
    if training.ranks is not None:
        findings += check_device(training.cpu, training.ranks, os.environ)
    if training.meeting is not None:
        head, node = training.meeting
        findings += judged("head", lambda: check_meeting(head, node, socket.gethostname(), os.environ))
    return warnings_or_raise(findings)


def warnings_or_raise(findings: Sequence[Finding]) -> list[str]:
    """Return the warnings, a line each. Raises InputErrors where there are errors."""
    errors = lines(findings, Status.ERROR)
    if errors:
        raise InputErrors(errors)
    return lines(findings, Status.WARNING)


def warn(messages: Sequence[str]) -> None:
    """Print warnings, a line each."""
    for message in messages:
        print(f"warning: {message}", file=sys.stderr)


def print_training(training: Training, warnings: Sequence[str], rate: float | None, as_json: bool) -> None:
    """Print what would be trained, for people or as one line of JSON."""
    config, trained = training.config, _trained(training)
    if as_json:
        folds = [
            {"fold": fold, "folder": str(training.folder(fold).absolute()), "is_trained": fold in trained}
            for fold in training.folds
        ]
        facts = {"experiment": config.experiment.name, "config": facts_of(config, None)["config"]}
        if training.meeting is not None:
            facts["local_addr"] = local_address(training.meeting[0])
        print(json.dumps({**facts, "folds": folds, "warnings": list(warnings)}))
        return
    warn(warnings)
    print(dump_resolved(config), end="")
    if training.shards is None:
        return
    with closing(Shards(training.shards)) as shards:
        for fold in training.folds:
            print("", *_plan_lines(config, shards, fold, training.world or 1, rate), sep="\n")
            print(f"folder: {training.folder(fold)}")
            print(f"state: {'done' if fold in trained else 'to be trained'}")


def print_prediction(asked: "PredictionPlan", as_json: bool) -> None:
    """Look at all that a prediction may end with; print how many films it would be of. Raises InputErrors."""
    from pneumo_dist.doctor.prediction import film_counts, prediction_findings

    warnings = warnings_or_raise(prediction_findings(asked, os.environ))
    films = film_counts(asked.shards)
    if as_json:
        print(json.dumps({"name": asked.config.name, "films": films, "warnings": warnings}))
        return
    warn(warnings)
    print(f"{asked.config.name}: {', '.join(f'{count} {split} films' for split, count in films.items())}")


def _plan_lines(config: LoadedConfig, shards: Shards, fold: int, world: int, rate: float | None) -> list[str]:
    """Return what every stage of a fold amounts to."""
    from pneumo_dist.data.plan import EpochPlan, split_fold

    _, validation = shards.fold_rows(fold, always_train=False)
    positives = int(shards.column("has_mask")[validation].sum())
    found = [f"validation: {len(validation)} films, {positives} of them with a pneumothorax"]
    for stage in config.experiment.stages:
        plan = EpochPlan(split_fold(shards, fold, stage.always_train), stage, config.experiment.seed, world)
        last = stage.epochs - 1
        steps = f"{_ends(plan.steps, last)} steps x {stage.epochs} epochs, accumulation {plan.accumulation}"
        hours = f", {plan.total_steps * stage.global_batch / rate / 3600:.2f} h" if rate else ""
        found.append(f"stage {stage.name}: {_ends(plan.length, last)} films an epoch, {steps} on {world} ranks{hours}")
    return found


def _ends(count: Callable[[int], int], last: int) -> str:
    """Return a count of the first epoch, and of the last where it differs."""
    first, final = count(0), count(last)
    return str(first) if first == final else f"{first} to {final}"


def _on_gpu(training: Training) -> bool:
    """Return whether the ranks will have GPUs; on another node they are taken to."""
    import torch

    return not training.cpu and (training.ranks is None or torch.cuda.is_available())


def _trained(training: Training) -> list[int]:
    """Return the folds that are trained to their end, with this config and these shards."""
    if training.shards is None:
        return []
    try:
        with closing(Shards(training.shards)) as shards:
            facts = facts_of(training.config, shards)
    except (InputError, OSError):
        return []  # preflight tells of it
    stages = [stage.name for stage in training.config.experiment.stages]
    same = {name: facts[name] for name in ("config", "shards")}
    return [fold for fold in training.folds if is_finished(training.folder(fold), same, stages)]
