"""The journal of a sweep: its trials, in a file that several processes share, and who trains which trial.

A trial is claimed with a lock that its process holds to its end, however it ends. A trial that runs by the journal, but
whose lock is free, has lost its process, and the next process resumes it.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import Field

from pneumo_dist.config.schema import Fold, Name
from pneumo_dist.sweep.space import Space, Value
from shards.errors import InputError
from shards.files import write_json
from shards.locks import Wait, try_signed_lock
from shards.stored import Strict, open_append, read_json

JOURNAL, RECORD, LOCKS, LOCK = "journal.log", "sweep.json", "locks", "lock"
FORMAT, FORMAT_VERSION = "pneumo_dist-sweep", 1
# The first trials are drawn at random, whatever the others score. The sampler needs as many to learn from.
RANDOM_TRIALS = 10
# Of a trial that failed: the reason.
ERROR = "error"


class RecordModel(Strict):
    """Contents of sweep.json: what makes the trials of a sweep comparable."""

    format: Annotated[str, Field(pattern=f"^{FORMAT}$")]
    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)]
    name: Name
    config: Annotated[str, Field(max_length=100)]
    space: dict[str, Any]
    grid: bool
    folds: list[Fold]
    shards: Annotated[str, Field(max_length=100)]
    seed: int
    prune: Annotated[int, Field(ge=0)] | None


class FileLock(JournalFileOpenLock):
    """The journal's lock for one write. Unlike Optuna's own, it needs no clock: it ends with its process."""

    def __init__(self, path: Path) -> None:
        self._journal, self._path = path, path.with_name(f"{path.name}.lock")
        self._stream: BinaryIO | None = None

    def acquire(self) -> bool:
        """Wait for the lock. Remove a part of a line that a killed process may have left."""
        self._stream = _wait_for(self._path)
        with self._journal.open("rb") as stream:
            if stream.seek(0, os.SEEK_END) and stream.seek(-1, os.SEEK_END) and stream.read() != b"\n":
                stream.seek(0)
                os.truncate(self._journal, stream.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        assert self._stream is not None
        self._stream.close()


def _wait_for(path: Path) -> BinaryIO:
    """Return a file that this process has locked, once no other process holds its lock."""
    stream, wait = open_append(path), Wait(path, lambda holder: print(f"waiting for {holder}", flush=True))
    while not _try(stream, path):
        wait.go_on()
        time.sleep(0.02)
    return stream


def _try(stream: BinaryIO, path: Path) -> bool:
    try:
        return try_signed_lock(stream)
    except OSError as error:
        stream.close()
        raise InputError(
            f"{path}: this file system has no file locks ({error.strerror}), without which two processes could train "
            "the same trial; put --runs on another one"
        ) from None


@dataclass(frozen=True)
class Trial:
    """A trial that this process has claimed.

    Attributes:
        number: Its number, counted from 0.
        id: Its number in the storage.
        parameters: The values of the space's keys.
        is_resumed: Whether another process began it.
    """

    number: int
    id: int
    parameters: Mapping[str, Value]
    is_resumed: bool


class Journal:
    """The trials of a sweep.

    Args:
        folder: The sweep's folder.
        name: The sweep's name.

    Raises InputError if the journal is damaged.
    """

    def __init__(self, folder: Path, name: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder = folder
        path = folder / JOURNAL
        try:
            self.storage = JournalStorage(JournalFileBackend(str(path), lock_obj=FileLock(path)))
        except (ValueError, KeyError, TypeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"{path}: damaged ({reason}); restore it from a copy, or begin another sweep") from None
        try:
            self._study_id = self.storage.get_study_id_from_name(name)
        except KeyError:
            self._study_id = self.storage.create_new_study([StudyDirection.MAXIMIZE], name)
        self.study = optuna.load_study(study_name=name, storage=self.storage)

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, in the order of their numbers."""
        return self.study.get_trials(deepcopy=False)

    @contextmanager
    def claim(
        self, most: int, suggest: Callable[[int], Mapping[str, Value] | None], space: Space
    ) -> Iterator[Trial | None]:
        """Claim a trial: one that has lost its process, or else a new one, if there are fewer than `most`.

        `suggest` returns the parameters of a new trial by its number, None if there is none. Yields None if there is
        nothing to claim.
        """
        with contextlib.ExitStack() as stack:
            with _wait_for(self.folder / LOCK):
                trial = self._lost(stack) or self._new(most, suggest, space, stack)
            yield trial

    def _lost(self, stack: contextlib.ExitStack) -> Trial | None:
        for trial in self.trials():
            if trial.state is TrialState.RUNNING and self._lock(trial.number, stack):
                # Its process may have ended it after the list was read.
                id = self.storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
                if self.storage.get_trial(id).state is TrialState.RUNNING:
                    return Trial(trial.number, id, trial.params, is_resumed=True)
        return None

    def _new(
        self,
        most: int,
        suggest: Callable[[int], Mapping[str, Value] | None],
        space: Space,
        stack: contextlib.ExitStack,
    ) -> Trial | None:
        number = len(self.trials())
        parameters = suggest(number) if number < most else None
        if parameters is None:
            return None
        if not self._lock(number, stack):
            raise InputError(f"{self.folder / LOCKS}: the lock of trial {number} is held, but the trial does not exist")
        distributions = {key: space.parameters[key].distribution for key in parameters}
        # Written at once, so that a trial has all its parameters or does not exist.
        template = create_trial(state=TrialState.RUNNING, params=dict(parameters), distributions=distributions)
        created = self.storage.create_new_trial(self._study_id, template_trial=template)
        return Trial(number, created, parameters, is_resumed=False)

    def _lock(self, number: int, stack: contextlib.ExitStack) -> bool:
        """Lock a trial until the stack is closed; return False if another process holds the lock."""
        path = self.folder / LOCKS / f"{number:03d}"
        path.parent.mkdir(exist_ok=True)
        stream = open_append(path)
        if not _try(stream, path):
            stream.close()
            return False
        stack.enter_context(stream)
        return True

    def sample(self, number: int, space: Space, seed: int) -> dict[str, Value]:
        """Return the parameters of a new trial, which depend on its number, the seed and the trials that have ended.

        The first RANDOM_TRIALS are random and depend on no other trial. The others are drawn by the tree-structured
        Parzen estimator of J. Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011, each key by
        itself. Trials that run count as bad ones, so that processes do not try the same at once.
        """
        (own,) = np.random.SeedSequence([seed, number]).generate_state(1).tolist()
        sampler: BaseSampler
        if number < RANDOM_TRIALS:
            sampler = RandomSampler(seed=own)
        else:
            sampler = TPESampler(seed=own, multivariate=False, constant_liar=True, n_startup_trials=RANDOM_TRIALS)
        trial = create_trial(state=TrialState.RUNNING)
        trial.number = number
        return {
            key: sampler.sample_independent(self.study, trial, key, parameter.distribution)
            for key, parameter in space.parameters.items()
        }

    def report(self, trial: Trial, scores: Sequence[float]) -> FrozenTrial:
        """Write the scores of a trial's epochs, in order, that the journal lacks. Return the trial."""
        stored = self.storage.get_trial(trial.id)
        for step, score in enumerate(scores):
            if step not in stored.intermediate_values:
                self.storage.set_trial_intermediate_value(trial.id, step, score)
        return self.storage.get_trial(trial.id)

    def end(self, trial: Trial, state: TrialState, score: float | None = None, error: str = "") -> None:
        """Write how a trial ended."""
        if error:
            self.storage.set_trial_user_attr(trial.id, ERROR, error)
        self.storage.set_trial_state_values(trial.id, state, None if score is None else [score])


def trial_name(sweep: str, number: int) -> str:
    """Return the name of a trial's experiment, and of its folder below --runs."""
    return f"{sweep}-{number:03d}"


def begin(folder: Path, record: RecordModel) -> Journal:
    """Create a sweep, or open it to go on.

    Raises InputError if it was begun with other settings: its trials could not be compared.
    """
    (folder / LOCKS).mkdir(parents=True, exist_ok=True)
    with _wait_for(folder / LOCK):
        path = folder / RECORD
        if path.exists():
            before, now = read_record(folder), record.model_dump(mode="json")
            for key in ("config", "shards", "space", "grid", "folds", "seed", "prune"):
                if before[key] != now[key]:
                    raise InputError(
                        f"{path}: this sweep was begun with {_IN_WORDS.get(key, f'another {key}')}; begin another "
                        "with --name"
                    )
        else:
            write_json(path, record.model_dump(mode="json"))
        return Journal(folder, record.name)


_IN_WORDS = {
    "config": "another config or other values of --set",
    "shards": "other shards",
    "space": "other values in --space",
    "grid": "--grid, or without it",
    "folds": "other folds",
    "prune": "another --prune",
}


def read_record(folder: Path) -> dict[str, Any]:
    """Return the settings of a sweep. Raises InputError if there is no sweep in the folder, or they are damaged."""
    try:
        return read_json(folder / RECORD, RecordModel, "restore it from a copy, or begin another sweep with --name")
    except FileNotFoundError:
        raise InputError(f"{folder}: holds no sweep; begin one with --config, --space and --shards") from None
