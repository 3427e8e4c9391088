"""Worker processes, forked by a server without threads that has imported their modules once."""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from multiprocessing import forkserver, util
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.parent import announced
from shards.temporaries import scratch_folder, scratch_name

# Room for the names of multiprocessing's folder and socket below ours, in the 107 bytes of a socket's path.
_LONGEST_FOLDER = 70
# Tried if TMPDIR is too long, as it may be in a job.
_SHORT_FOLDERS = ("/tmp", "/dev/shm")
# multiprocessing removes its own folder with priority -100.
_AFTER_ITS_OWN = -101
_QUIET = "ignore:resource_tracker:UserWarning"
# The environment and the folder for temporary files belong to the whole process, and its threads change them in turn.
_IN_TURN = threading.RLock()


def fork_server(module: str) -> Any:
    """Start this process's server of workers, unless it runs, and return the context whose workers it forks.

    This process has threads; a worker forked from it could inherit a lock held by one of them. The server imports
    `module` once for all workers. This returns before the server is ready. Call it from the main thread: the server
    ends with the thread that started it, and the workers end with the server.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shards.bound_server", module])
    with _IN_TURN:
        _own_socket_folder()
        with announced(), _quiet_tracker(), _deaf_to_hangups():
            forkserver.ensure_running()
    return context


@contextmanager
def _quiet_tracker() -> Iterator[None]:
    """Have Python's tracker, which starts with the server, clean up after a kill without a report of its own.

    The report would follow the line that explains the end.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = f"{before},{_QUIET}" if before else _QUIET
    try:
        yield
    finally:
        del os.environ["PYTHONWARNINGS"]
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


@contextmanager
def temporaries_of_workers() -> Iterator[None]:
    """Put temporary files that a library leaves if it is killed into the folder of this process's server.

    The next process removes that folder. Call `fork_server` first. One thread at a time is let in.
    """
    with _IN_TURN:
        usual, tempfile.tempdir = tempfile.tempdir, util.get_temp_dir()
        try:
            yield
        finally:
            tempfile.tempdir = usual


@contextmanager
def _deaf_to_hangups() -> Iterator[None]:
    """Have Python's tracker survive a terminal that closes, as it survives Ctrl-C, to remove semaphores afterwards."""
    if threading.current_thread() is not threading.main_thread():  # the server runs already
        yield
        return
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, usual)


@cache
def _own_socket_folder() -> None:
    """Put the server's socket into a folder that the next process removes if this one is killed.

    Raises InputError if no folder has a path that is short enough for a socket.
    """
    for parent in dict.fromkeys([tempfile.gettempdir(), *_SHORT_FOLDERS]):
        stack = ExitStack()
        with suppress(OSError):
            folder = stack.enter_context(scratch_folder(Path(parent), scratch_name()))
            if len(os.fsencode(folder)) <= _LONGEST_FOLDER:
                break
        stack.close()
    else:
        raise InputError(f"{tempfile.gettempdir()}: its path is too long for a socket; set TMPDIR to a shorter one")
    util.Finalize(None, stack.close, exitpriority=_AFTER_ITS_OWN)
    usual, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        util.get_temp_dir()  # creates it, once
    finally:
        tempfile.tempdir = usual
