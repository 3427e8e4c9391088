"""A disk that is full at one moment: the write with a given number fails when it reaches the disk."""

import errno
import os
from collections.abc import Callable

import pytest


class FullDisk:
    """Counts what reaches the disk (files and the folders that list them), and refuses one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, full_at: int | None = None) -> None:
        self.writes = 0
        real: Callable[[int], None] = os.fsync

        def fsync(descriptor: int) -> None:
            self.writes += 1
            if full_at is not None and self.writes > full_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)


def moments(writes: int) -> list[int]:
    """Return how many writes fit before the disk is full: at the start, in the middle and at the end."""
    assert writes >= 2, "each file takes two: its content, and its name in the folder"
    return sorted({0, writes // 2, writes - 1})
