"""Locks on folders that several processes share, and who holds them."""

import contextlib
import fcntl
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from shards.console import printable

# Seconds until a wait is first reported, and between later reports.
FIRST_SECONDS, AGAIN_SECONDS = 5.0, 300.0
_LONGEST_COMMAND, _LONGEST_TEXT = 300, 1000


def try_lock(stream: BinaryIO, shared: bool = False) -> bool:
    """Lock an open file and return whether that succeeded; False if another process holds a lock that excludes it.

    The lock lasts until the file is closed or the process ends, however it ends. Raises OSError on a file system
    without locks.
    """
    # The library filelock has no shared locks, which the tasks of an array need.
    try:
        fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def try_signed_lock(stream: BinaryIO, shared: bool = False) -> bool:
    """Like `try_lock`, and write into the file who holds the lock, for `holder`."""
    if not try_lock(stream, shared):
        return False
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:_LONGEST_COMMAND]
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    text = f"process {os.getpid()} on {socket.gethostname()} since {since}: {command}"
    with contextlib.suppress(OSError):  # a full disk is no reason to refuse the lock
        os.ftruncate(stream.fileno(), 0)
        os.write(stream.fileno(), os.fsencode(text))
    return True


def holder(path: Path) -> str:
    """Describe the process that holds a signed lock, by process, host, time and command."""
    try:
        with path.open("rb") as stream:
            text = os.fsdecode(stream.read(_LONGEST_TEXT))
    except OSError:
        text = ""
    return printable(text) or "another process"


class Wait:
    """Reports a wait for a signed lock: after a few seconds, and then rarely. `report` gets who holds the lock."""

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        self._path, self._report = path, report
        self._next = time.monotonic() + FIRST_SECONDS

    def go_on(self) -> None:
        """Call this at every attempt that did not get the lock."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + AGAIN_SECONDS
            self._report(holder(self._path))
