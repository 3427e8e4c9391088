"""Writes and indexes tars, and reads their members by offset with a check of the CRC32."""

import importlib
import os
import sys
import tarfile
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.files import atomic_open
from shards.stored import open_regular


class CorruptSample(InputError):
    """A member whose bytes are not those that the table describes: by CRC32, or by the size of the image."""


def index_tar(path: Path) -> tuple[dict[tuple[str, str], int], str]:
    """Return (key, member) -> data offset of a tar, and its `.idx` text in DALI's format v1.2.

    A member is the first part of the extension: `image` of `{key}.image.png`. Nothing is extracted. Raises
    tarfile.TarError or ValueError for a tar with anything but the regular files that a build writes.
    """
    offsets: dict[tuple[str, str], int] = {}
    samples: dict[str, list[str]] = {}
    for member in _members(path):
        key, extension = member.name.split(".", 1)
        if (key, extension.split(".")[0]) in offsets:
            raise tarfile.TarError(f"{member.name} occurs twice")
        offsets[key, extension.split(".")[0]] = member.offset_data
        samples.setdefault(key, []).append(f"{extension} {member.offset_data} {member.size} {member.name}")
    return offsets, "".join([f"v1.2 {len(samples)}\n", *(" ".join(members) + "\n" for members in samples.values())])


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a plain USTAR file.

    tarfile follows extended headers, and sizes below zero without end.
    """
    with open_regular(path) as stream:
        length, position = os.fstat(stream.fileno()).st_size, 0
        while (header := stream.read(tarfile.BLOCKSIZE)).strip(tarfile.NUL):
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            member.offset_data = position + tarfile.BLOCKSIZE
            if member.type != tarfile.REGTYPE or not 0 <= member.size <= length - member.offset_data:
                raise tarfile.TarError(f"{member.name} is not a file of {path}")
            yield member
            position = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            stream.seek(position)


@contextmanager
def write_tar(path: Path) -> Iterator[Any]:
    """Open webdataset's TarWriter on a tar that appears whole or not at all. Equal samples give equal bytes."""
    with atomic_open(path) as stream, _tar_writer()(stream, encoder=False, mtime=0, user="", group="") as writer:
        yield writer


def _tar_writer() -> Any:
    """Return the TarWriter of webdataset, imported without torch unless torch is imported already.

    webdataset imports torch if it can, which costs each build worker 490 MB and a second.
    """
    if "torch" in sys.modules:
        return importlib.import_module("webdataset").TarWriter
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("webdataset").TarWriter
    finally:
        del sys.modules["torch"]


class MemberReader:
    """Positional reads from the tars of a folder. Safe with threads, fork and spawn. Tars are opened on first use.

    `copies` maps names of tars to paths of copies. A copy that exists is read instead of the tar.
    """

    def __init__(self, folder: Path, copies: Mapping[str, Path] | None = None) -> None:
        self.folder = folder
        self.copies = dict(copies or {})
        self._lock = threading.Lock()
        self._opened: dict[str, tuple[int, Path, int]] = {}

    def __reduce__(self) -> tuple[type["MemberReader"], tuple[Path, dict[str, Path]]]:
        return MemberReader, (self.folder, self.copies)

    def read(self, tar: str, offset: int, size: int, crc32: int, label: str) -> bytes:
        """Return the bytes at an offset of a tar.

        Raises CorruptSample, with the file and `label`, if they are missing or differ from the CRC32.
        """
        descriptor, path, length = self._open(tar)
        content = os.pread(descriptor, size, offset) if offset + size <= length else b""
        if len(content) != size or zlib.crc32(content) != crc32:
            fix = "restore this file from a copy or create it again"
            if path != self.folder / tar:
                fix = f"remove this file, which is a copy of {self.folder / tar}, and run again"
            raise CorruptSample(f"{path}: the {label} does not match its CRC32; {fix}")
        return content

    def _open(self, tar: str) -> tuple[int, Path, int]:
        with self._lock:
            if tar not in self._opened:
                for path in ([self.copies[tar]] if tar in self.copies else []) + [self.folder / tar]:
                    try:
                        with open_regular(path) as stream:
                            descriptor = os.dup(stream.fileno())
                        self._opened[tar] = descriptor, path, os.fstat(descriptor).st_size
                        break
                    except FileNotFoundError:
                        continue
                else:
                    raise InputError(f"{self.folder / tar}: missing; restore it from a copy or create it again")
            return self._opened[tar]

    def close(self) -> None:
        """Close the tars. A later read opens them again."""
        with self._lock:
            for descriptor, *_ in self._opened.values():
                os.close(descriptor)
            self._opened.clear()
