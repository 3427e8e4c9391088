"""Members of tar files on disk: indexed once, then read by offset with their CRC32 checked."""

import os
import tarfile
import threading
import zlib
from pathlib import Path

from shards.errors import InputError


class CorruptSample(InputError):
    """A member whose bytes do not match the CRC32 in the table."""


def index_tar(path: Path) -> tuple[dict[tuple[str, str], int], str]:
    """Return (key, member) -> data offset of a tar, and its `.idx` text in DALI's format v1.2.

    A member is the first part of the extension: `image` of `{key}.image.png`.
    """
    offsets: dict[tuple[str, str], int] = {}
    samples: dict[str, list[str]] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            key, extension = member.name.split(".", 1)
            offsets[key, extension.split(".")[0]] = member.offset_data
            samples.setdefault(key, []).append(f"{extension} {member.offset_data} {member.size} {member.name}")
    return offsets, "".join([f"v1.2 {len(samples)}\n", *(" ".join(members) + "\n" for members in samples.values())])


class MemberReader:
    """Positional reads from the tars of a folder. Safe with threads, fork and spawn; tars are opened when needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._descriptors: dict[str, int] = {}

    def __reduce__(self) -> tuple[type["MemberReader"], tuple[Path]]:
        return MemberReader, (self.folder,)

    def read(self, tar: str, offset: int, size: int, crc32: int, label: str) -> bytes:
        """Return the bytes at an offset of a tar.

        Raises CorruptSample, naming tar and `label`, where they are missing or differ from the CRC32.
        """
        content = os.pread(self._descriptor(tar), size, offset)
        if len(content) != size or zlib.crc32(content) != crc32:
            raise CorruptSample(
                f"{self.folder / tar}: the {label} does not match its CRC32; restore this file "
                "from a copy or make it again"
            )
        return content

    def _descriptor(self, tar: str) -> int:
        with self._lock:
            if tar not in self._descriptors:
                try:
                    self._descriptors[tar] = os.open(self.folder / tar, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    raise InputError(f"{self.folder / tar}: missing; restore it from a copy or make it again") from None
            return self._descriptors[tar]

    def close(self) -> None:
        """Close the tars; a later read opens them again."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()
