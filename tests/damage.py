"""Ways to damage a file."""

from pathlib import Path
from typing import Any


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_bit(path: Path, offset: int | None = None) -> None:
    """Flip a bit of one byte, by default of the byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if offset is None else offset] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


class Harm:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("unpickled",)
