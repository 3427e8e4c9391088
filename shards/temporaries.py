"""Temporary files and folders next to their targets, which the next process of the same kind removes after a kill.

A temporary of NAME is called `.NAME.0.tmp`, or has the next free number if several processes write NAME at once. It is
locked for as long as its process uses it, so a temporary without a lock belongs to a dead process.
"""

import contextlib
import fcntl
import itertools
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# On a file system without locks, a temporary is left alone until nothing has written to it for a day.
UNUSED_SECONDS = 86_400.0


@contextmanager
def claimed(folder: Path, name: str, create: Callable[[Path], int]) -> Iterator[tuple[Path, int]]:
    """Create a temporary of `name`; remove it at the end, unless it was renamed, and those of dead processes now.

    `create` creates a path, raises FileExistsError if it exists, and returns an open descriptor. Yields both.
    """
    numbers, owner = itertools.count(), os.getpid()
    descriptor = None
    while descriptor is None:
        path = folder / f".{name}.{next(numbers)}.tmp"
        remove_unused(path)
        with contextlib.suppress(FileExistsError):
            descriptor = _kept(path, create(path))
    try:
        for number in numbers:
            other = folder / f".{name}.{number}.tmp"
            if not os.path.lexists(other):
                break
            remove_unused(other)
        yield path, descriptor
    finally:
        # A fork of this process, which drops what it inherited, removes nothing. There may be another file at the path
        # if this process has renamed its own.
        if os.getpid() == owner and _is_at(path, descriptor):
            _remove(path)
        os.close(descriptor)


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """Create a hidden folder that only this user can read, and remove it with its content at the end.

    Folders of the same name that killed processes left are removed first.
    """
    if not parent.exists():
        parent.mkdir(parents=True, exist_ok=True)
    with claimed(parent, name, _new_folder) as (path, _):
        yield path


def scratch_name() -> str:
    """Return the name of this user's scratch folders among the system's temporary files; any process cleans them up."""
    return f"pneumo_dist-{os.getuid()}"


def _new_folder(path: Path) -> int:
    path.mkdir(mode=0o700)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def remove_all_unused(folder: Path, pattern: str = ".*.tmp") -> None:
    """Remove the temporaries in a folder that no process uses."""
    for path in folder.glob(pattern):
        remove_unused(path)


def remove_unused(path: Path) -> None:
    """Remove a temporary unless a process uses it, or this one may not remove it."""
    with contextlib.suppress(OSError):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):  # exists for an instant only
            path.unlink()
            return
        access = os.O_RDONLY if stat.S_ISDIR(status.st_mode) else os.O_RDWR  # NFS locks only what may be written
        descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError:
            if time.time() - status.st_mtime > UNUSED_SECONDS:
                _remove(path)
        else:
            if _is_at(path, descriptor):
                _remove(path)
        finally:
            os.close(descriptor)


def _kept(path: Path, descriptor: int) -> int | None:
    """Lock a new temporary and return its descriptor; None if another process has taken it for an unused one."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        pass  # a file system without locks
    if not _is_at(path, descriptor):
        os.close(descriptor)
        return None
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
