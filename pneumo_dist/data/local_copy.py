"""Local copies of a fold's shards on a node's own disk: copied and verified once per node, read by all ranks.

A copy's name is derived from its content (`local_copy_name`). So folds, datasets and versions of a growing dataset
share one folder, an existing copy is never stale, and after a kill only the missing tars are copied. One process at a
time copies, under a lock on the folder; the others wait for the tars that they need.
"""

import hashlib
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.dataset.manifest import local_copy_name
from shards.dataset.table import Shards
from shards.errors import InputError
from shards.files import atomic_open
from shards.locks import Wait, try_signed_lock
from shards.stored import open_append, open_regular
from shards.temporaries import remove_all_unused

BLOCK = 8 * 2**20
LOCK = ".pneumo_dist.lock"
POLL_SECONDS = 0.2
# Matches the temporaries of `atomic_open` for copies only: the folder may be shared, such as /tmp.
_TEMPORARIES = "." + "[0-9a-f]" * 16 + "-*.tar.*.tmp"

_Tar = dict[str, Any]
_OnBytes = Callable[[int], None]


def needed_bytes(shards: Shards, rows: npt.NDArray[np.int64]) -> int:
    """Return the size in bytes of the tars that hold the given rows, whether copied already or not."""
    return sum(tar["bytes"] for tar in _tars(shards, rows))


def copy_shards_locally(
    shards: Shards,
    rows: npt.NDArray[np.int64],
    cache_dir: Path,
    on_bytes: _OnBytes | None = None,
    on_wait: Callable[[str], None] = lambda who: None,
) -> Shards:
    """Copy the tars that hold the given rows into `cache_dir` and return a dataset that reads them there.

    Several processes of a node may call this at once: one copies, the others wait. Finished copies always stay.

    Args:
        on_bytes: Called with the number of bytes copied here, copied by another process or already present,
            `needed_bytes` in total, and with 0 from time to time while this process waits. An exception stops the copy.
        on_wait: Called with a description of the process that copies, after a few seconds of waiting and then rarely.

    Raises:
        InputError: `cache_dir` cannot be written to or is too small, or a tar is missing or differs from the manifest.
    """
    report = on_bytes or (lambda count: None)
    missing = _tars(shards, rows)
    try:
        # Without the lock: a complete cache may belong to another user, or be locked by one who copies other tars.
        missing = _missing(missing, cache_dir, report)
        wait = Wait(cache_dir / LOCK, on_wait)
        while missing:
            with _try_lock(cache_dir) as held:
                missing = _missing(missing, cache_dir, report)
                if held:
                    _copy_all(missing, shards.folder, cache_dir, report)
                    missing = []
            if missing:
                wait.go_on()
                time.sleep(POLL_SECONDS)
    except OSError as error:
        raise _input_error(error, shards.folder, cache_dir) from error
    return Shards(shards.folder, cache_dir)


def _tars(shards: Shards, rows: npt.NDArray[np.int64]) -> list[_Tar]:
    """Return the manifest's entries of the tars that hold the rows.

    A tar that the manifest does not list (a killed append left it) has no digest to verify, and is not copied.
    """
    names = set(shards.texts(rows, "shard"))
    return [tar for tar in shards.manifest["shards"] if tar["name"] in names]


def _missing(tars: Sequence[_Tar], cache_dir: Path, report: _OnBytes) -> list[_Tar]:
    """Return the tars without a copy of the right size; report the bytes of the others."""
    missing = [tar for tar in tars if _size(cache_dir / local_copy_name(tar)) != tar["bytes"]]
    report(sum(tar["bytes"] for tar in tars) - sum(tar["bytes"] for tar in missing))
    return missing


def _size(path: Path) -> int:
    """Return the size of a copy, or -1 if there is none. A link does not count: it is replaced, never followed."""
    try:
        status = path.lstat()
    except OSError:
        return -1  # if the folder is the problem, the lock fails on it next
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


@contextmanager
def _try_lock(cache_dir: Path) -> Iterator[bool]:
    """Try to lock the folder and yield whether it succeeded. The system releases the lock when this process ends."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with open_append(cache_dir / LOCK) as stream:
        yield try_signed_lock(stream)


def _copy_all(tars: Sequence[_Tar], folder: Path, cache_dir: Path, report: _OnBytes) -> None:
    """Copy missing tars, and remove what killed processes left of others. The caller holds the lock."""
    remove_all_unused(cache_dir, _TEMPORARIES)
    needed, free = sum(tar["bytes"] for tar in tars), shutil.disk_usage(cache_dir).free
    if needed > free:
        raise InputError(
            f"data.cache_dir {cache_dir}: the shards still to copy take {needed / 1e9:.3f} GB, {free / 1e9:.3f} GB "
            f"are free; {_fix(folder)}"
        )
    for tar in tars:
        _copy(tar, folder / tar["name"], cache_dir / local_copy_name(tar), report)


def _copy(tar: _Tar, source: Path, target: Path, report: _OnBytes) -> None:
    """Copy one tar and verify it during the copy, so that the shared disk is read once."""
    digest = hashlib.sha256()
    with atomic_open(target) as stream:
        for block in _blocks(source):
            digest.update(block)
            stream.write(block)
            report(len(block))
            if stream.tell() > tar["bytes"]:
                break
        if digest.hexdigest() != tar["sha256"] or stream.tell() != tar["bytes"]:
            raise InputError(f"{source}: differs from the manifest's digest; restore it from a copy or build again")


def _blocks(source: Path) -> Iterator[memoryview]:
    """Yield the content of a file in blocks, each valid until the next."""
    block = memoryview(bytearray(BLOCK))
    try:
        with open_regular(source) as stream:
            while count := stream.readinto(block):
                yield block[:count]
    except OSError as error:
        raise InputError(
            f"{source}: cannot be read ({error.strerror}); restore it from a copy or build again"
        ) from error


def _input_error(error: OSError, folder: Path, cache_dir: Path) -> InputError:
    filename = f", {error.filename}" if error.filename and str(error.filename) != str(cache_dir) else ""
    return InputError(
        f"data.cache_dir {cache_dir}: cannot hold copies of shards ({error.strerror}{filename}); {_fix(folder)}"
    )


def _fix(folder: Path) -> str:
    return f"give another data.cache_dir, or null to read them from {folder}"
