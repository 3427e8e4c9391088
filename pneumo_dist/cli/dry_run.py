"""The checks of train and predict before they start, and the output of --dry-run."""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pneumo_dist import __version__
from pneumo_dist.config.load import LoadedConfig, dump_resolved
from pneumo_dist.doctor.findings import ROOM, Finding, Status, lines_of, run_check
from pneumo_dist.doctor.network import check_meeting, local_address
from pneumo_dist.doctor.preflight import TrainingPlan, check_device, preflight
from pneumo_dist.runs.heartbeat import is_finished
from pneumo_dist.source import source_digest
from shards import console
from shards.dataset.table import Shards
from shards.errors import InputError, InputErrors

if TYPE_CHECKING:
    from pneumo_dist.doctor.prediction import PredictionPlan


@dataclass(frozen=True)
class Training:
    """The training that a command line asks for.

    Attributes:
        config: The experiment and the origin of its values.
        shards: Folder of the shards, None to check only the config.
        runs: Folder of all runs.
        folds: Folds to train.
        cpu: Whether to train on the CPU.
        allow_empty_fold: Whether a fold may have no positive film to validate on.
        world: World size, None if unknown.
        ranks: Number of ranks on this node, None if training runs elsewhere.
        meeting: Address at which several nodes meet, as HOST:PORT, and the number of this node.
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
        """Return the folder that a fold trains in."""
        return self.runs / self.config.experiment.name / f"fold{fold}"


def facts_of(config: LoadedConfig, shards: Shards | None) -> dict[str, str]:
    """Return the facts that all ranks must agree on and that a finished fold records."""
    return {
        "code": f"{__version__}, source {source_digest()}",
        "config": hashlib.sha256(config.experiment.model_dump_json().encode()).hexdigest(),
        "shards": shards.manifest["table_sha256"] if shards is not None else "",
    }


def check_training(training: Training) -> list[str]:
    """Check everything that training could fail with, and return warnings, one line each.

    Existing checkpoints are not checked, because training checks them itself.

    Raises:
        InputErrors: Training would fail.
    """
    return warnings_or_raise(training_findings(training, resumes=False))


def training_findings(training: Training, resumes: bool = True) -> list[Finding]:
    """Return the findings of all checks of a training; with `resumes`, also of its existing checkpoints."""
    trained = _trained(training)
    plan = TrainingPlan(
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
    findings = preflight(plan, os.environ)
    if training.folds and not plan.folds:
        findings = [finding for finding in findings if finding.check != ROOM]  # nothing is left to write
    if training.ranks is not None:
        findings += check_device(training.cpu, training.ranks, os.environ)
    if training.meeting is not None:
        head, node = training.meeting
        findings += run_check("head", lambda: check_meeting(head, node, socket.gethostname(), os.environ))
    return findings


def warnings_or_raise(findings: Sequence[Finding]) -> list[str]:
    """Return the warnings, one line each. Raises InputErrors if there are errors."""
    errors = lines_of(findings, Status.ERROR)
    if errors:
        raise InputErrors(errors)
    return lines_of(findings, Status.WARNING)


def room_of(findings: Sequence[Finding]) -> str:
    """Return what will be written against what is free, as the check of the disk says it; empty if it was not made."""
    return next((finding.message for finding in findings if finding.check == ROOM), "")


def warn(messages: Sequence[str]) -> None:
    """Print warnings, one line each."""
    for message in messages:
        console.warn(message)


def print_training(training: Training, findings: Sequence[Finding], rate: float | None, as_json: bool) -> None:
    """Print the planned training as text or as one line of JSON. `rate` is in films/s, to estimate hours.

    Raises InputErrors if training would fail.
    """
    warnings, room = warnings_or_raise(findings), room_of(findings)
    config, trained = training.config, _trained(training)
    if as_json:
        folds = [
            {"fold": fold, "folder": str(training.folder(fold).absolute()), "is_trained": fold in trained}
            for fold in training.folds
        ]
        facts = {"experiment": config.experiment.name, "config": facts_of(config, None)["config"]}
        if training.meeting is not None:
            facts["local_addr"] = local_address(training.meeting[0])
        print(json.dumps({**facts, "folds": folds, "room": room, "warnings": list(warnings)}))
        return
    warn(warnings)
    print(dump_resolved(config), end="")
    if training.shards is not None:
        _print_folds(training, trained, rate)
    if room:
        print(f"\nroom: {room}")


def _print_folds(training: Training, trained: Sequence[int], rate: float | None) -> None:
    assert training.shards is not None
    with closing(Shards(training.shards)) as shards:
        for fold in training.folds:
            print("", *_fold_lines(training.config, shards, fold, training.world or 1, rate), sep="\n")
            print(f"folder: {training.folder(fold)}")
            print(f"state: {'done' if fold in trained else 'to be trained'}")


def print_prediction(plan: "PredictionPlan", as_json: bool) -> None:
    """Check everything that a prediction could fail with, and print its number of films. Raises InputErrors."""
    from pneumo_dist.doctor.prediction import film_counts, prediction_findings

    findings = prediction_findings(plan, os.environ)
    warnings, room = warnings_or_raise(findings), room_of(findings)
    films = film_counts(plan.shards)
    if as_json:
        print(json.dumps({"name": plan.config.name, "films": films, "room": room, "warnings": warnings}))
        return
    warn(warnings)
    print(f"{plan.config.name}: {', '.join(f'{count} {split} films' for split, count in films.items())}")
    if room:
        print(f"room: {room}")


def _fold_lines(config: LoadedConfig, shards: Shards, fold: int, world: int, rate: float | None) -> list[str]:
    """Describe the validation of a fold and the films, steps and hours of each stage, one line each."""
    from pneumo_dist.data.plan import EpochPlan, split_fold

    _, validation = shards.fold_rows(fold, always_train=False)
    positives = int(shards.column("has_mask")[validation].sum())
    lines = [f"validation: {len(validation)} films, {positives} of them with a pneumothorax"]
    for stage in config.experiment.stages:
        plan = EpochPlan(split_fold(shards, fold, stage.always_train), stage, config.experiment.seed, world)
        last = stage.epochs - 1
        films = f"{_first_to_last(plan.length, last)} films per epoch"
        if stage.unlabelled is not None:
            films += f", and {stage.unlabelled_films} of {stage.micro_batch} in a micro-batch without labels"
        steps = f"{_first_to_last(plan.steps, last)} steps x {stage.epochs} epochs, accumulation {plan.accumulation}"
        hours = f", {plan.total_steps * stage.global_batch / rate / 3600:.2f} h" if rate else ""
        lines.append(f"stage {stage.name}: {films}, {steps} on {world} ranks{hours}")
    return lines


def _first_to_last(count: Callable[[int], int], last: int) -> str:
    """Return the count of the first epoch, and of the last epoch if it differs."""
    first, final = count(0), count(last)
    return str(first) if first == final else f"{first} to {final}"


def _on_gpu(training: Training) -> bool:
    """Return whether the ranks will have GPUs. Another node is assumed to have some."""
    import torch

    return not training.cpu and (training.ranks is None or torch.cuda.is_available())


def _trained(training: Training) -> list[int]:
    """Return the folds whose training has finished, with this config and these shards."""
    if training.shards is None:
        return []
    try:
        with closing(Shards(training.shards)) as shards:
            facts = facts_of(training.config, shards)
    except (InputError, OSError):
        return []  # preflight reports it
    stages = [stage.name for stage in training.config.experiment.stages]
    recorded = {name: facts[name] for name in ("config", "shards")}
    return [fold for fold in training.folds if is_finished(training.folder(fold), recorded, stages)]
