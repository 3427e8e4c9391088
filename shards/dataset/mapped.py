"""Large tables in memory that the processes of a machine share: one decodes the file, all map the result.

The decoded table lies in a folder of this user below the folder for temporary files. Its name is the digest of the
stored table, so it cannot be stale. A file that nobody has mapped for two weeks is removed.
"""

import contextlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow as pa

from shards.files import atomic_open
from shards.locks import Wait, try_signed_lock
from shards.stored import open_append
from shards.temporaries import remove_all_unused

KEPT_SECONDS = 14 * 86_400.0
_LOCK = ".lock"
_POLL_SECONDS = 0.1


def mapped(digest: str, decode: Callable[[], pa.Table]) -> pa.Table:
    """Return the table with a digest from shared memory; `decode` is called if no process has decoded it before.

    The table is decoded into this process's own memory if the folder cannot be used, for example on a full disk.
    """
    decoded: list[pa.Table] = []
    try:
        path = _own_folder() / f"{digest}-{pa.__version__}.arrow"
        with contextlib.suppress(FileNotFoundError):
            return _opened(path)
        with _locked(path.parent):
            if not path.exists():
                decoded.append(decode())
                with atomic_open(path, 0o600) as stream, pa.ipc.new_file(stream, decoded[0].schema) as writer:
                    writer.write_table(decoded[0].combine_chunks())
                _remove_unused(path.parent)
        return _opened(path)
    except (OSError, pa.ArrowException):
        return decoded[0] if decoded else decode()


def _opened(path: Path) -> pa.Table:
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    os.utime(path)
    return table


def tables_folder() -> Path:
    """Return the path of this user's folder of decoded tables."""
    return Path(tempfile.gettempdir()) / f"pneumo_dist-tables-{os.getuid()}"


def _own_folder() -> Path:
    """Return the folder of this user's tables. Raises PermissionError if other users can write to it."""
    folder = tables_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise PermissionError(f"{folder}: not a folder that only this user can write to")
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open_append(folder / _LOCK) as stream:
        wait = Wait(folder / _LOCK, partial(_say_wait, folder))
        while not try_signed_lock(stream):
            wait.go_on()
            time.sleep(_POLL_SECONDS)
        yield


def _say_wait(folder: Path, who: str) -> None:
    print(f"waiting for {who}, which decodes a table into {folder}", file=sys.stderr, flush=True)


def _remove_unused(folder: Path) -> None:
    """Remove tables that were last mapped long ago, and what a killed process has left."""
    for path in folder.glob("*.arrow*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink()
    remove_all_unused(folder)
