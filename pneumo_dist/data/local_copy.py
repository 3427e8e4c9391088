"""Copies of the shards that a fold needs on a node's own disk: made and verified once per node, read by all ranks.

A copy is named by its content (`local_copy_name`). So other folds, a dataset that has grown and several datasets share
one folder, a copy that stands there is never stale, and what is missing is copied tar by tar after a kill. One process
at a time copies, under a lock on the folder; the others wait for what they need.
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
from shards.stored import open_append, try_lock

BLOCK = 8 * 2**20
LOCK = ".pneumo_dist.lock"
POLL_SECONDS = 0.2
# Temporaries of `atomic_open` for our names and no others: the folder may be a shared one such as /tmp.
_TEMPORARIES = "." + "[0-9a-f]" * 16 + "-*.tar.*.tmp"

_Tar = dict[str, Any]
_OnBytes = Callable[[int], None]


def needed_bytes(shards: Shards, rows: npt.NDArray[np.int64]) -> int:
    """Return the size in bytes of the tars that hold the given rows, copied already or not."""
    return sum(tar["bytes"] for tar in _tars(shards, rows))


def copy_shards_locally(
    shards: Shards, rows: npt.NDArray[np.int64], cache_dir: Path, on_bytes: _OnBytes | None = None
) -> Shards:
    """Copy the tars that hold the given rows into `cache_dir` and return the dataset that reads them from there.

    Processes of a node may call it at once: one copies, the others wait. `on_bytes` hears of bytes copied here, copied
    by another process or found, `needed_bytes` in all, and of 0 bytes now and then while this process waits; what it
    raises stops the copy. Finished copies stay whatever happens. Raises InputError where `cache_dir` cannot be
    written to or is too small, and where a tar is missing or differs from the manifest.
    """
    heard = on_bytes or (lambda count: None)
    missing = _tars(shards, rows)
    try:
        # Without the lock: a whole cache may belong to another user, or be in use by one who copies other tars.
        missing = _missing(missing, cache_dir, heard)
        while missing:
            with _try_lock(cache_dir) as held:
                missing = _missing(missing, cache_dir, heard)
                if held:
                    _copy_all(missing, shards.folder, cache_dir, heard)
                    missing = []
            if missing:
                time.sleep(POLL_SECONDS)
    except OSError as error:
        raise _refusal(error, shards.folder, cache_dir) from error
    return Shards(shards.folder, cache_dir)


def _tars(shards: Shards, rows: npt.NDArray[np.int64]) -> list[_Tar]:
    """Return the manifest's entries of the tars that hold the rows.

    A tar that the manifest does not list has no digest to verify, and is read where it is (a killed append left it).
    """
    names = set(shards.column("shard")[rows])
    return [tar for tar in shards.manifest["shards"] if tar["name"] in names]


def _missing(tars: Sequence[_Tar], cache_dir: Path, heard: _OnBytes) -> list[_Tar]:
    """Return the tars without a copy of the right size, and report the bytes of the others."""
    missing = [tar for tar in tars if _size(cache_dir / local_copy_name(tar)) != tar["bytes"]]
    heard(sum(tar["bytes"] for tar in tars) - sum(tar["bytes"] for tar in missing))
    return missing


def _size(path: Path) -> int:
    """Return the size of a copy, -1 where there is none. A link is none: it is replaced, and not followed."""
    try:
        status = path.lstat()
    except OSError:
        return -1  # if the folder is at fault, making the lock says so
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


@contextmanager
def _try_lock(cache_dir: Path) -> Iterator[bool]:
    """Try to hold the folder's lock, which the system lets go when this process ends; yield whether it is held."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with open_append(cache_dir / LOCK) as stream:
        yield try_lock(stream)


def _copy_all(tars: Sequence[_Tar], folder: Path, cache_dir: Path, heard: _OnBytes) -> None:
    """Copy tars that are not there yet. The caller holds the lock, so any temporary is that of a dead process."""
    for stale in cache_dir.glob(_TEMPORARIES):
        stale.unlink()
    needed, free = sum(tar["bytes"] for tar in tars), shutil.disk_usage(cache_dir).free
    if needed > free:
        raise InputError(
            f"data.cache_dir {cache_dir}: the shards still to copy take {needed / 1e9:.3f} GB, {free / 1e9:.3f} GB "
            f"are free; {_mend(folder)}"
        )
    for tar in tars:
        _copy(tar, folder / tar["name"], cache_dir / local_copy_name(tar), heard)


def _copy(tar: _Tar, source: Path, target: Path, heard: _OnBytes) -> None:
    """Copy one tar and verify it on the way, so that the shared disk is read once."""
    digest = hashlib.sha256()
    with atomic_open(target) as stream:
        for block in _blocks(source):
            digest.update(block)
            stream.write(block)
            heard(len(block))
        if digest.hexdigest() != tar["sha256"] or stream.tell() != tar["bytes"]:
            raise InputError(f"{source}: differs from the manifest's digest; restore it from a copy or build again")


def _blocks(source: Path) -> Iterator[memoryview]:
    """Yield the content of a file in blocks that are valid until the next one."""
    block = memoryview(bytearray(BLOCK))
    try:
        with source.open("rb", buffering=0) as stream:
            while count := stream.readinto(block):
                yield block[:count]
    except OSError as error:
        raise InputError(
            f"{source}: cannot be read ({error.strerror}); restore it from a copy or build again"
        ) from error


def _refusal(error: OSError, folder: Path, cache_dir: Path) -> InputError:
    where = f", {error.filename}" if error.filename and str(error.filename) != str(cache_dir) else ""
    return InputError(
        f"data.cache_dir {cache_dir}: cannot hold copies of shards ({error.strerror}{where}); {_mend(folder)}"
    )


def _mend(folder: Path) -> str:
    return f"give another data.cache_dir, or null to read them from {folder}"
