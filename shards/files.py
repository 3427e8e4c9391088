"""Atomic writes: a file appears whole or not at all. Temporaries are removed by the next writer of the same name."""

import contextlib
import hashlib
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shards.temporaries import claimed

_ATTEMPTS = 100
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class NamedLater:
    """A temporary file that is renamed once its content is known."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.name: str | None = None


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Name a file in errors of the system that name none, as those of a full disk do."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error


@contextmanager
def atomic_open(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a temporary file next to `path`. On success it is fsynced and renamed to `path`, on failure removed."""
    with atomic_named_later(path.parent, path.name, mode) as file:
        file.name = path.name
        yield file.stream


@contextmanager
def atomic_named_later(folder: Path, prefix: str, mode: int = 0o666) -> Iterator[NamedLater]:
    """Like `atomic_open`, for a file in `folder` whose name the caller sets before the end. Errors name `prefix`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with claimed(folder, prefix, lambda path: os.open(path, _NEW_FILE, mode)) as (temporary, descriptor):
            # The descriptor stays open, and the lock held, until the file has its name.
            with os.fdopen(descriptor, "wb", closefd=False) as stream:
                file = NamedLater(stream)
                yield file
            os.fsync(descriptor)
            assert file.name is not None, "the file was not named"
            temporary.replace(folder / file.name)
    except OSError as error:
        # A failed write (a full disk) does not name its file, others name the temporary.
        is_named = error.filename and not Path(error.filename).name.startswith(f".{prefix}.")
        raise OSError(error.errno, error.strerror, error.filename if is_named else str(folder / prefix)) from error
    sync_directory(folder)


def atomic_write(path: Path, content: bytes | memoryview | str, mode: int = 0o666) -> None:
    """Write a file so that readers see either the old content or the new, never a part of it."""
    with atomic_open(path, mode) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON; the file appears whole or not at all."""
    atomic_write(path, json.dumps(value, indent=1) + "\n")


def atomic_symlink(link: Path, target_name: str) -> None:
    """Point `link` at a file in the same folder, replacing an existing link atomically."""
    temporary = link.with_name(f".{link.name}.0.tmp")
    for _ in range(_ATTEMPTS):
        temporary.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):  # another process points the link elsewhere at this moment
            temporary.symlink_to(target_name)
            with contextlib.suppress(FileNotFoundError):
                temporary.replace(link)
                break
    sync_directory(link.parent)


def sync_directory(folder: Path) -> None:
    """Flush the entries of a folder, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with named_errors(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def raise_open_files() -> None:
    """Raise the limit of open files to the hard limit, for this process and its workers: every tar stays open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems refuse their own hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
