"""The checkpoints of one stage: which files exist, which is the newest, which scored best, which are kept."""

import errno
import hashlib
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pneumo_dist.network.tensors import tensor_bytes
from pneumo_dist.runs.checkpoint import (
    FORMAT_VERSION,
    CheckpointFile,
    State,
    from_training,
    read_header,
    top_steps,
)
from shards.errors import InputError
from shards.files import atomic_named_later, atomic_symlink
from shards.temporaries import remove_all_unused

# Kept in addition to the top-k, so that one damaged file never leaves a run without a checkpoint.
NEWEST_KEPT = 2


class _HashedStream:
    """Hashes what torch writes to a file. Large writes, and their hashing, let other threads run."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()

    def write(self, content: memoryview) -> int:
        self.sha256.update(content)
        return self._stream.write(content)

    def flush(self) -> None:
        self._stream.flush()


class CheckpointFolder:
    """The checkpoint files in one folder. A file that was verified once is not read again to verify it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole: set[tuple[CheckpointFile, int]] = set()

    def __str__(self) -> str:
        return str(self.path)

    def files(self) -> list[CheckpointFile]:
        """Return the checkpoint files, newest first."""
        files = [file for path in self.path.glob("step-*.pt") if (file := CheckpointFile.parse(path)) is not None]
        return sorted(files, key=lambda file: (file.step, file.path.stat().st_mtime_ns), reverse=True)

    def save(self, step: int, state: State) -> CheckpointFile:
        """Write a state of tensors and plain Python types as step-NNNNNNNN-<digest>.pt and point `last` at it.

        Raises OSError if it cannot be written, for example on a full disk. Existing files are left alone then.
        """
        if shutil.disk_usage(self.path).free < tensor_bytes(state):
            # An attempt would fill the disk, and the logs need that space.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        with atomic_named_later(self.path, f"step-{step:08d}") as later:
            stream = _HashedStream(later.stream)
            torch.save({"format_version": FORMAT_VERSION, **state}, stream)  # type: ignore[arg-type]
            file = CheckpointFile.named(step, stream.sha256.hexdigest(), self.path)
            later.name = file.path.name
        # A step can be saved before and after its validation: the later state replaces the earlier one.
        for older in self.files():
            if older.step == step and older.path != file.path:
                older.path.unlink(missing_ok=True)
        atomic_symlink(self.path / "last", file.path.name)
        return file

    def keep(self, steps: Sequence[int]) -> None:
        """Remove all files but the newest and those of `steps` (best first); update the links `last` and `best`.

        A step whose save failed has no file. `best` then points at the next best.
        """
        files = self.files()
        kept = {*steps, *(file.step for file in files[:NEWEST_KEPT])}
        if files:
            atomic_symlink(self.path / "last", files[0].path.name)
        by_step = {file.step: file for file in files}
        best = next((by_step[step] for step in steps if step in by_step), None)
        if best is not None:
            atomic_symlink(self.path / "best", best.path.name)
        for file in files:
            if file.step not in kept:
                file.path.unlink(missing_ok=True)

    def newest(self) -> CheckpointFile | None:
        """Return the newest file that matches its digest; warn if a damaged one was skipped.

        Raises InputError if all files are damaged. A folder that does not exist has no newest file.
        """
        damaged: list[CheckpointFile] = []
        for file in self.files():
            if self._is_whole(file):
                if damaged:
                    warnings.warn(f"{damaged[0].path} is damaged; using {file.path} instead", stacklevel=2)
                return file
            damaged.append(file)
        if damaged:
            raise InputError(
                f"{self}: none of the {len(damaged)} checkpoints is whole; remove the folder to start again"
            )
        return None

    def check_newest(self) -> None:
        """Raise InputError if the newest file is damaged. An older one would be without the epochs since then."""
        self.check_whole(self.files()[:1])

    def check_whole(self, files: Iterable[CheckpointFile]) -> None:
        """Raise InputError for the first of some files that is damaged."""
        for file in files:
            if not self._is_whole(file):
                raise file.damaged()

    def recover(self) -> CheckpointFile | None:
        """Return the newest whole file after removing what a killed run left: temporary files and damaged newer ones.

        Damaged files would count among the newest that are kept, in place of whole ones.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.remove_temporaries()
        newest = self.newest()
        if newest is not None:
            for damaged in takewhile(lambda file: file != newest, self.files()):
                damaged.path.unlink(missing_ok=True)
        return newest

    def remove_temporaries(self) -> None:
        """Remove temporary files that a killed writer left behind."""
        remove_all_unused(self.path)

    def header(self) -> State:
        """Return the newest checkpoint that training wrote, without the values of its tensors.

        Raises InputError if there is none.
        """
        newest = self.newest()
        if newest is None:
            raise InputError(f"{self}: no checkpoints; train that fold first")
        return from_training(read_header(newest.path), newest.path)

    def best(self, history: Sequence[Mapping[str, Any]], count: int) -> list[CheckpointFile]:
        """Return up to `count` files with the best scores of a history, best first; warn if the best one is missing.

        Raises InputError if no validated epoch has a file.
        """
        by_step = {file.step: file for file in self.files()}
        ranked = top_steps(history, len(history))
        files = [by_step[step] for step in ranked if step in by_step][:count]
        if not files:
            raise InputError(f"{self}: no validated checkpoint yet; let the stage finish an epoch")
        if files[0].step != ranked[0]:
            warnings.warn(
                f"{self}: the best checkpoint, of step {ranked[0]}, is missing; using {files[0].path.name}",
                stacklevel=2,
            )
        return files

    def top(self, count: int) -> list[CheckpointFile]:
        """Return up to `count` files with the best validation scores, best first. Raises InputError if none exists."""
        return self.best(self.header()["history"], count)

    def best_whole(self, history: Sequence[Mapping[str, Any]]) -> CheckpointFile:
        """Return the file with the best score. Raises InputError if it is damaged."""
        (best,) = self.best(history, 1)
        self.check_whole([best])
        return best

    def _is_whole(self, file: CheckpointFile) -> bool:
        key = (file, file.path.stat().st_mtime_ns)
        if key not in self._whole and not file.is_whole():
            return False
        self._whole.add(key)
        return True
