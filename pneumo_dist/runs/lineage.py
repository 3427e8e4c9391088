"""Lineage of a checkpoint: the films that it and all its ancestors were trained on, and what a resume may change."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.record import differing_keys, with_present_defaults
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.plan import split_fold
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.runs.soft_labels import maps_folders, read_teachers
from shards.dataset.table import Shards
from shards.errors import InputError

# Options that change how long a stage runs, not what its steps compute.
HARMLESS_STAGE_KEYS = frozenset({"epochs", "early_stop", "top_k", "save_every", "save_minutes", "eval_batch", "repeat"})
HARMLESS_KEYS = frozenset(
    {"data.threads", "data.prefetch", "data.cache_dir", "runtime.watchdog_minutes", "runtime.start_minutes"}
)
# Experiment of an ancestor that is a file of weights. Experiments cannot have this name.
FILE = "init.file"
# Sections that must match besides the stage's own.
COMPARED = ("seed", "amp", "model", "data", "runtime", "init")


@dataclass(frozen=True)
class Ancestor:
    """A trained stage, with digests of its films and labels.

    Attributes:
        keys_sha256: Digest of the training films' keys.
        films_sha256: Digest of the keys of training and validation films. Empty in checkpoints before 0.2.0.
        labels_sha256: Digest of the labels of all these films. Empty in checkpoints before 0.2.0.
        maps_sha256: Digest of the maps that it learned from, and of the keys of films without labels. Empty for stages
            with neither.
    """

    experiment: str
    stage: str
    fold: int
    always_train: bool
    keys_sha256: str
    films_sha256: str = ""
    labels_sha256: str = ""
    maps_sha256: str = ""


@dataclass(frozen=True)
class Lineage:
    """A stage and all stages that it has its weights or soft labels from, oldest first."""

    stages: tuple[Ancestor, ...]

    def to_plain(self) -> list[dict[str, Any]]:
        """Return the stages as plain types for a checkpoint."""
        return [asdict(stage) for stage in self.stages]


def stage_lineage(run: FoldRun, stage: StageConfig, previous: Lineage | None) -> Lineage:
    """Return the lineage of a stage that starts after `previous`.

    Raises InputError if maps that it learns from are missing, or were made by networks that have seen other films of
    this fold than its training films.
    """
    shards = run.shards
    split = split_fold(shards, run.fold, stage.always_train)
    films = np.concatenate([split.train, split.validation])
    keys, labels = shards.texts(films, "key"), shards.texts(films, "rle")
    ancestor = Ancestor(
        run.experiment.name,
        stage.name,
        run.fold,
        stage.always_train,
        keys_sha256=keys_digest(keys[: len(split.train)]),
        films_sha256=keys_digest(keys),
        labels_sha256=keys_digest(f"{key} {label}" for key, label in zip(keys, labels, strict=True)),
    )
    before = previous.stages if previous else ()
    if not stage.has_soft_labels:
        return Lineage((*before, ancestor))
    digests, known = [], dict.fromkeys(before)
    for source, folder in maps_folders(run, stage):
        teachers, maps = read_teachers(folder, source, run.fold)
        check_unseen(teachers, str(folder), shards, run.fold, "maps to learn from")
        digests.append(maps)
        known |= dict.fromkeys(Ancestor(**each) for each in teachers)
    unlabelled = shards.texts(split.unlabelled, "key") if stage.unlabelled else []
    return Lineage((*known, replace(ancestor, maps_sha256=keys_digest([*unlabelled, *digests]))))


def file_lineage(run: FoldRun) -> Lineage | None:
    """Return the lineage of the weights in `init.file`, by what the config says of its films; None for other films."""
    init = run.experiment.init
    if init is None or init.sha256 is None or init.trained_on == "other_films":
        return None
    is_known = init.trained_on == "this_fold"
    # The digest of a file is never that of a fold's keys, so `check_unseen` refuses unknown films.
    keys = training_digest(run.shards, run.fold, always_train=False) if is_known else init.sha256
    return Lineage((Ancestor(FILE, init.sha256[:16], run.fold, False, keys_sha256=keys),))


def training_digest(shards: Shards, fold: int, always_train: bool) -> str:
    """Return the digest of the keys that a stage of this fold trains on."""
    return keys_digest(shards.texts(split_fold(shards, fold, always_train).train, "key"))


def keys_digest(keys: Iterable[str]) -> str:
    """Return a SHA-256 over sample keys in hexadecimal. Their order does not matter."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()


def check_unseen(
    lineage: Sequence[Mapping[str, Any]],
    name: str,
    shards: Shards,
    fold: int,
    what: str = "out-of-fold and holdout predictions",
) -> None:
    """Raise InputError unless a checkpoint and all its ancestors were trained on the training films of this fold.

    Only then has it never seen the fold's validation films and the holdout. `what` needs that.
    """
    for ancestor in lineage:
        digest = training_digest(shards, fold, ancestor["always_train"])
        if (ancestor["fold"], ancestor["keys_sha256"]) == (fold, digest):
            continue
        if ancestor["experiment"] == FILE:
            raise InputError(
                f"{name}: started from the weights of an init.file with unknown training films; {what} need "
                "init.trained_on in the config of the training"
            )
        raise InputError(
            f"{name}: its stage {ancestor['stage']} was trained on other films than fold {fold} of {shards.folder}; "
            f"{what} need the shards and folds of the training"
        )


def check_same_run(
    experiment: Experiment, state: Mapping[str, Any], path: Path, stage: StageConfig, lineage: Lineage
) -> None:
    """Raise InputError, naming the keys, if a run cannot resume from a checkpoint because of its config or films.

    Configs are compared with the present defaults filled in, so a new option at its default makes no difference.
    """
    saved, wanted = with_present_defaults(state["experiment"]), experiment.model_dump(mode="json")
    saved_stage: dict[str, Any] = next((s for s in saved["stages"] if s["name"] == stage.name), {})
    wanted_stage = next(s for s in wanted["stages"] if s["name"] == stage.name)
    different = [
        *differing_keys({key: saved.get(key) for key in COMPARED}, {key: wanted[key] for key in COMPARED}),
        *differing_keys(saved_stage, wanted_stage),
    ]
    harmless = HARMLESS_STAGE_KEYS | HARMLESS_KEYS
    if stage.schedule.name in ("cosine", "restarts", "poly") and stage.schedule.t_max is None:
        harmless -= {"epochs"}  # they set the period of the learning rate
    if stage.sample_rate_end is not None:
        harmless -= {"epochs"}  # they set the sample rate of each epoch
    if stage.optim.swa_epochs is not None:
        harmless -= {"epochs", "eval_batch"}  # they set which epochs are averaged, and the batch-norm statistics
    if stage.schedule.name == "plateau" and stage.schedule.watch == "loss":
        harmless -= {"eval_batch"}  # the Dice loss of a batch depends on it
    if "runtime.fused" in different and (saved["runtime"].get("fused"), wanted["runtime"]["fused"]) == (False, None):
        harmless |= {"runtime.fused"}  # the default before 0.6.0 was false
    different = [key for key in different if key not in harmless]
    if different:
        raise InputError(
            f"{path}: was trained with another {', '.join(different)}; use the config that the run started with, "
            "or another experiment name"
        )
    changed = _changed_data(state["lineage"], lineage.to_plain())
    if changed:
        raise InputError(
            f"{path}: was trained on other {changed}; use the shards that the run started with, or train with these "
            "in another --runs"
        )


def _changed_data(saved: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what differs between two lineages: stages, films, folds or labels; None if nothing does."""
    if len(saved) != len(wanted):
        return "stages"
    pairs = [({**new, **old}, new) for old, new in zip(saved, wanted, strict=True)]

    def differ(*names: str) -> bool:
        return any(old[name] != new[name] for old, new in pairs for name in names)

    if differ("films_sha256"):
        return "films"
    if differ("experiment", "stage"):
        return "stages"
    if differ("maps_sha256"):
        return "films without labels or maps to learn from"
    if differ("fold", "always_train", "keys_sha256"):
        return "folds" if all(old.get("films_sha256") for old in saved) else "films or folds"
    return "labels" if differ("labels_sha256") else None
