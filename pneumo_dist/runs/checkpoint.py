"""Checkpoints: named by step and digest, written whole, verified before use, nothing unpickled."""

import errno
import hashlib
import io
import os
import re
import shutil
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from pneumo_dist.runs.state import MEND, check_state
from shards.errors import InputError
from shards.files import atomic_symlink, atomic_write, sha256_file
from shards.stored import stored_plainly

# Checkpoints of before 0.2.0 note none; theirs is 1.
FORMAT_VERSION = 1
DIGEST_LENGTH = 16
# Besides the top-k, so that one damaged file never leaves a run without a checkpoint.
NEWEST_KEPT = 2
_NAME = re.compile(r"step-(\d{8})-([0-9a-f]{16})\.pt")

State = dict[str, Any]


@dataclass(frozen=True)
class CheckpointFile:
    """A step file as its name describes it."""

    path: Path
    step: int
    digest: str


def list_checkpoints(folder: Path) -> list[CheckpointFile]:
    """Return the step files of a folder, newest first."""
    found = []
    for path in folder.glob("step-*.pt"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.append(CheckpointFile(path, int(match[1]), match[2]))
    return sorted(found, key=lambda file: (file.step, file.path.stat().st_mtime_ns), reverse=True)


def save_checkpoint(folder: Path, step: int, state: State) -> CheckpointFile:
    """Write a state (tensors and plain Python types) as step-NNNNNNNN-<digest>.pt and point `last` at it.

    Raises OSError where it cannot be written, as on a full disk; the files that stand are left alone.
    """
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **state}, buffer)
    content = buffer.getbuffer()
    if shutil.disk_usage(folder).free < len(content):
        # An attempt would take what room there is from the logs, until it fails.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    digest = hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]
    path = folder / f"step-{step:08d}-{digest}.pt"
    atomic_write(path, content)
    # One step may be saved before and after its validation: the later state replaces the earlier.
    for old in list_checkpoints(folder):
        if old.step == step and old.path != path:
            old.path.unlink(missing_ok=True)
    atomic_symlink(folder / "last", path.name)
    return CheckpointFile(path, step, digest)


class CheckpointWriter:
    """Writes checkpoints from a thread, so that training goes on; one at a time, in order.

    A state is copied before `save` returns. A save that fails (a full disk) is told in a warning and leaves the files
    that stand; `wait` says whether the last one succeeded.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, state: State, after: Callable[[], None]) -> None:
        """Copy a state and write it; `after` is called in the thread once the file stands."""
        self.wait()
        copied = _copied(state)
        self._thread = threading.Thread(target=self._write, args=(step, copied, after), name="checkpoint")
        self._thread.start()

    def wait(self) -> OSError | None:
        """Wait for the last save; return what kept it from being written, or None. Raises what was no OSError."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None and not isinstance(self._error, OSError):
            raise self._error
        return self._error

    def _write(self, step: int, state: State, after: Callable[[], None]) -> None:
        self._error = None
        outcome = "is not saved"
        try:
            save_checkpoint(self._folder, step, state)
            outcome = "is saved, but not what goes with it"
            after()
        except OSError as error:
            self._error = error
            warnings.warn(
                f"{self._folder}: the checkpoint of step {step} {outcome} ({error.strerror}); training goes on, the "
                "one before stays",
                stacklevel=2,
            )
        except Exception as error:  # for `wait`: in this thread nobody would hear of it
            self._error = error


def _copied(value: Any) -> Any:
    """Return a nested state whose tensors are copies on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value


def keep_only(folder: Path, steps: Sequence[int]) -> None:
    """Remove step files other than the newest and those of `steps`, best first; point `last` and `best` at theirs.

    A step of `steps` whose save failed has no file: `best` is then the next one's.
    """
    files = list_checkpoints(folder)
    kept = {*steps, *(file.step for file in files[:NEWEST_KEPT])}
    if files:
        atomic_symlink(folder / "last", files[0].path.name)
    by_step = {file.step: file for file in files}
    best = next((by_step[step] for step in steps if step in by_step), None)
    if best is not None:
        atomic_symlink(folder / "best", best.path.name)
    for file in files:
        if file.step not in kept:
            file.path.unlink(missing_ok=True)


def is_whole(file: CheckpointFile) -> bool:
    """Return whether a file's content matches the digest in its name."""
    return sha256_file(file.path).startswith(file.digest)


def newest_good(folder: Path) -> CheckpointFile | None:
    """Return the newest step file that matches its digest; warn, naming both, when a damaged one is passed over."""
    damaged: list[CheckpointFile] = []
    for file in list_checkpoints(folder):
        if is_whole(file):
            if damaged:
                warnings.warn(f"{damaged[0].path} is damaged; going on from {file.path}", stacklevel=2)
            return file
        damaged.append(file)
    if damaged:
        raise InputError(f"{folder}: none of the {len(damaged)} checkpoints is whole; remove the folder to start again")
    return None


def remove_newer(file: CheckpointFile) -> None:
    """Remove the step files that a run which goes on from this one passed over; it writes them again.

    They would count among the newest that are kept, in place of whole ones.
    """
    for other in takewhile(lambda other: other.path != file.path, list_checkpoints(file.path.parent)):
        other.path.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> State:
    """Load a checkpoint onto the CPU. Raises InputError where it is missing, damaged or of another kind."""
    try:
        resolved = path.resolve(strict=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint; train that fold first") from None
    match = _NAME.fullmatch(resolved.name)
    if match:
        check_whole(CheckpointFile(resolved, int(match[1]), match[2]))
    return read_checkpoint(resolved)


def check_whole(file: CheckpointFile) -> None:
    """Raise InputError where a file's content does not match the digest in its name."""
    if not is_whole(file):
        raise InputError(f"{file.path}: damaged (its content does not match its digest); restore it or train again")


def read_checkpoint(path: Path) -> State:
    """Load a checkpoint that is known to be whole onto the CPU.

    Raises InputError where it is of another kind, and where a value is none that training writes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if not stored_plainly(archive, path.stat().st_size):
                raise InputError(f"{path}: its members are compressed, as no checkpoint's are; restore it")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # the zip reader and the restricted unpickler raise many kinds
        raise InputError(f"{path}: not a readable checkpoint ({type(error).__name__}); {MEND}") from None
    if not isinstance(state, dict) or "model" not in state:
        raise InputError(f"{path}: holds no model; {MEND}")
    version = state.get("format_version", 1)
    if version != FORMAT_VERSION:
        wrote = state.get("version", "version not noted")
        raise InputError(
            f"{path}: a checkpoint of format version {version}, this program reads version {FORMAT_VERSION}; "
            f"use the pneumo_dist that wrote it ({wrote}), or train again"
        )
    check_state(state, path)
    return state


def read_trained(path: Path) -> State:
    """Read a checkpoint that training wrote. Raises InputError as `read_checkpoint` does, and for averaged weights."""
    return of_training(read_checkpoint(path), path)


def of_training(state: State, path: Path) -> State:
    """Return a state that training wrote. Raises InputError for one of averaged weights."""
    if "position" not in state:
        raise InputError(f"{path}: holds averaged weights, which have no training to go on with; {MEND}")
    return state


def weights_of(state: State) -> State:
    """Return the weights that a checkpoint validated and predicts with: the moving average where there is one."""
    weights: State = state["averaged"] or state["model"]
    return weights


def top_steps(history: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Return the steps with the best scores, best first; the earlier of two equals wins."""
    ranked = sorted(history, key=lambda entry: (-entry["score"], entry["step"]))
    return [int(entry["step"]) for entry in ranked[:count]]


def best_files(folder: Path, history: Sequence[State], count: int) -> list[CheckpointFile]:
    """Return a stage's files with the best scores of its history, best first; warn where the best one is missing.

    Raises InputError where none of the validated epochs has a file.
    """
    by_step = {file.step: file for file in list_checkpoints(folder)}
    ranked = top_steps(history, len(history))
    files = [by_step[step] for step in ranked if step in by_step][:count]
    if not files:
        raise InputError(f"{folder}: no validated checkpoint yet; let the stage finish an epoch")
    if files[0].step != ranked[0]:
        warnings.warn(
            f"{folder}: the best checkpoint, of step {ranked[0]}, is missing; taking {files[0].path.name}", stacklevel=2
        )
    return files


def newest_state(folder: Path) -> State:
    """Load the newest whole checkpoint of a stage that has been trained. Raises InputError where it has none."""
    newest = newest_good(folder) if folder.is_dir() else None
    if newest is None:
        raise InputError(f"{folder}: no checkpoints; train that fold first")
    return read_trained(newest.path)


def top_files(folder: Path, count: int) -> list[CheckpointFile]:
    """Return a finished stage's files with the best validation scores, best first.

    Raises InputError where the stage has none.
    """
    return best_files(folder, newest_state(folder)["history"], count)


def keys_digest(keys: Iterable[str]) -> str:
    """Return a SHA-256 over sample keys, whatever their order."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()


def remove_stale_temporaries(folder: Path) -> None:
    """Remove temporary files that a killed writer left behind."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
