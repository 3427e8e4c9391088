"""Atomic writes: a file appears whole or not at all."""

import contextlib
import hashlib
import json
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class NamedLater:
    """A temporary file that is renamed once its content is known."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.name: str | None = None


@contextmanager
def atomic_open(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a temporary file next to `path`. On success it is fsynced and renamed to `path`, on failure removed."""
    with atomic_named_later(path.parent, path.name, mode) as file:
        file.name = path.name
        yield file.stream


@contextmanager
def atomic_named_later(folder: Path, prefix: str, mode: int = 0o666) -> Iterator[NamedLater]:
    """Like `atomic_open`, for a file in `folder` whose name the caller sets before the end. Errors name `prefix`."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{prefix}.", suffix=".tmp", dir=folder)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            file = NamedLater(stream)
            yield file
            stream.flush()
            os.fsync(stream.fileno())
        assert file.name is not None, "the file was not named"
        temporary.chmod(mode & ~current_umask())
        temporary.replace(folder / file.name)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        # A failed write (a full disk) does not name its file.
        raise OSError(error.errno, error.strerror, error.filename or str(folder / prefix)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
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
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target_name)
    temporary.replace(link)
    sync_directory(link.parent)


def sync_directory(folder: Path) -> None:
    """Flush the entries of a folder, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def raise_open_files() -> None:
    """Raise the limit of open files to the hard limit, for this process and its workers: every tar stays open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems refuse their own hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def current_umask() -> int:
    """Return the umask of this process. mkstemp ignores it, but shared files must respect it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
