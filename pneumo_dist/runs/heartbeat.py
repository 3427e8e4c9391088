"""heartbeat.json of a fold: the state of its run, written by rank 0 every few seconds. Imports no torch."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

from pydantic import Field

from pneumo_dist.config.schema import Name
from shards.errors import InputError
from shards.files import atomic_write
from shards.locks import try_lock
from shards.stored import Strict, open_append, read_json

if TYPE_CHECKING:
    from pneumo_dist.ranks.ranks import Ranks

HEARTBEAT, LOCK = "heartbeat.json", "lock"
RUNNING, PREEMPTED, FAILED, DONE = "running", "preempted", "failed", "done"
BEAT_SECONDS = 15.0
# A run without a heartbeat for longer than this was killed, or its node is lost.
LOST_SECONDS = 4 * BEAT_SECONDS
# The ranks of a killed run die with it, but not at the same instant.
PATIENCE_SECONDS = 10.0


class HeartbeatModel(Strict):
    """Contents of heartbeat.json. A run that has not started a stage has none."""

    state: Annotated[str, Field(max_length=50)]
    host: Annotated[str, Field(max_length=300)] | None = None
    pid: int | None = None
    job_id: Annotated[str, Field(max_length=300)] | None = None
    time: Annotated[float, Field(ge=0, le=1e11)]
    stage: Name | None = None
    epoch: Annotated[int, Field(ge=0, le=2**53)] | None = None
    epochs: Annotated[int, Field(ge=0, le=2**53)] | None = None
    step: Annotated[int, Field(ge=0, le=2**53)] | None = None
    idle: Annotated[float, Field(ge=0, le=1e11)] | None = None


class Heartbeat:
    """Writes heartbeat.json from a thread, so that a long validation does not look like a lost run.

    A run that fails before its first step restores the previous heartbeat, because it has not changed the fold.

    Args:
        folder: The fold's folder; None to write nothing.
        facts: What is trained: digests of the config and of the sample table, and the number of ranks.
        seconds: Seconds between heartbeats.
        idle: Returns the seconds since the run last made progress.
    """

    def __init__(
        self,
        folder: Path | None,
        facts: Mapping[str, Any],
        seconds: float = BEAT_SECONDS,
        idle: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._path = folder / HEARTBEAT if folder is not None else None
        self._idle = idle
        before = read_heartbeat(folder) if folder is not None else None
        self._before = before if before is not None and before.get("state") != RUNNING else None
        self._first: tuple[str, int] | None = None
        self._has_moved = False
        self._content: dict[str, Any] = {
            "state": RUNNING,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job_id": _job(os.environ),
            **facts,
        }
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        if self._path is not None:
            self._write()
            self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._thread.start()

    def note(self, stage: str, epoch: int, epochs: int, step: int) -> None:
        """Set the stage, its current epoch, counted from 0, its number of epochs, and its optimizer steps so far."""
        self._first = self._first or (stage, step)
        self._has_moved = self._has_moved or self._first != (stage, step)
        # A single assignment, because the thread may read at any moment.
        self._content = {**self._content, "stage": stage, "epoch": epoch, "epochs": epochs, "step": step}

    def end(self, state: str) -> None:
        """Stop the thread and write the final state."""
        if self._thread is None:
            return
        self._stopped.set()
        self._thread.join()
        self._content = {**self._content, "state": state}
        if state == FAILED and not self._has_moved and self._before is not None:
            self._store(self._before)
        else:
            self._has_moved = True
            self._write()

    def _beat(self) -> None:
        while not self._stopped.wait(self._seconds):
            self._write()

    def _write(self) -> None:
        if self._has_moved or self._before is None or self._before.get("state") != DONE:
            self._store({**self._content, "time": time.time(), "idle": round(self._idle(), 1)})

    def _store(self, content: Mapping[str, Any]) -> None:
        assert self._path is not None
        with contextlib.suppress(OSError):  # the checkpoints report a full disk
            atomic_write(self._path, json.dumps(content) + "\n")


def _job(environment: Mapping[str, str]) -> str | None:
    """Return the SLURM job in the form that squeue and scancel use, 12 or 12_3; None without SLURM."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


@contextmanager
def hold_run_folder(folder: Path, ranks: "Ranks", facts: Mapping[str, Any]) -> Iterator[Heartbeat]:
    """Lock a fold's folder for this run and write its heartbeat, including how the run ended.

    Raises InputError on every rank if another run holds the lock. Two runs would overwrite each other's checkpoints.
    """
    from pneumo_dist.ranks.ranks import on_rank_0
    from pneumo_dist.ranks.stop import Preempted

    if ranks.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    with open_append(folder / LOCK) if ranks.is_main else contextlib.nullcontext() as stream:
        on_rank_0(ranks, lambda: _hold(folder, stream))
        heartbeat = Heartbeat(
            folder if ranks.is_main else None, {**facts, "world": ranks.world}, idle=ranks.idle_seconds
        )
        state = FAILED
        try:
            yield heartbeat
            state = DONE
        except Preempted:
            state = PREEMPTED
            raise
        finally:
            heartbeat.end(state)


@contextmanager
def hold_idle_folder(folder: Path) -> Iterator[None]:
    """Lock a fold's folder in which nobody trains, so that no run begins meanwhile.

    Raises InputError if a run holds the lock, or has written a heartbeat within the last minute: on some file systems
    other nodes do not see the lock.
    """
    with open_append(folder / LOCK) as stream:
        try:
            is_free = try_lock(stream)
        except OSError:
            is_free = True  # a file system without locks
        if not is_free or _beats(folder):
            raise InputError(f"{folder}: {_whose(folder)} is training here; wait for it, or stop it")
        yield


def _beats(folder: Path) -> bool:
    beat = read_heartbeat(folder)
    return beat is not None and beat.get("state") == RUNNING and time.time() - float(beat["time"]) < LOST_SECONDS


def _hold(folder: Path, stream: BinaryIO | None) -> bool:
    """Lock an open file; return whether the file system supports locks."""
    assert stream is not None
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while not try_lock(stream):
            if time.monotonic() > deadline:
                raise InputError(f"{folder}: {_whose(folder)} is training here; wait for it, or stop it")
            time.sleep(0.1)
    except OSError:
        return False  # a file system without locks
    return True


def _whose(folder: Path) -> str:
    heartbeat = read_heartbeat(folder)
    if heartbeat is None:
        return "another run"
    job = f" of job {heartbeat['job_id']}" if heartbeat.get("job_id") else ""
    return f"process {heartbeat.get('pid')}{job} on {heartbeat.get('host')}"


def read_heartbeat(folder: Path) -> dict[str, Any] | None:
    """Return a fold's heartbeat; None if it is missing or damaged."""
    try:
        return read_json(folder / HEARTBEAT, HeartbeatModel, "it is written again")
    except (OSError, InputError):
        return None


def is_finished(folder: Path, facts: Mapping[str, Any], stages: Sequence[str]) -> bool:
    """Return whether a fold was trained to its end with these facts, and all its stages have checkpoints."""
    heartbeat = read_heartbeat(folder)
    have_checkpoints = all((folder / stage / "checkpoints/last").exists() for stage in stages)
    return have_checkpoints and heartbeat is not None and {**heartbeat, **facts, "state": DONE} == heartbeat
