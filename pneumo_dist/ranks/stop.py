"""Stopping on a signal: a handler sets a flag, the ranks agree to stop, and rank 0 leaves a marker."""

import json
import os
import signal
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Self

import torch
import torch.distributed as dist

from pneumo_dist.ranks.ranks import Ranks
from shards.files import atomic_write

MARKER = "preempted.json"
EXIT_PREEMPTED = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class StopRequested(Exception):
    """Raised on every rank at the same point, once the ranks agree to stop."""


class Preempted(Exception):
    """Raised after the checkpoint of a stopped run is written."""


class Request(IntEnum):
    """A rank's wish at the end of a step, the more urgent the larger."""

    NONE = 0
    SAVE = 1
    STOP = 2


class StopAgreement:
    """Turns a signal to any rank, or one rank's wish to save, into a decision that all ranks reach together.

    Each poll starts an asynchronous MAX reduction of the ranks' flags and reads the result of the previous one, so no
    rank waits. The decision takes effect two polls later at the latest.

    Use it as a context manager. After an error it does not wait for the last reduction, because other ranks may never
    join it.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._signalled = False
        self._flag = torch.zeros(1)
        self._pending: dist.Work | None = None
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def check(self, wants_save: bool = False) -> bool:
        """Return whether the ranks agreed to save. All ranks must call this equally often.

        Raises StopRequested once the ranks agreed to stop.
        """
        request = self.poll(wants_save)
        if request is Request.STOP:
            raise StopRequested
        return request is Request.SAVE

    def poll(self, wants_save: bool = False) -> Request:
        """Return the most urgent request of any rank. All ranks must poll equally often."""
        mine = Request.STOP if self._signalled else Request.SAVE if wants_save else Request.NONE
        if self._ranks.control is None:
            return mine
        agreed = self._finish()
        if agreed is not Request.STOP:
            self._flag = torch.tensor([float(mine)])
            self._pending = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._ranks.control, async_op=True)
        return agreed

    def _finish(self) -> Request:
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        return Request(int(self._flag.item()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Preempted):
            self._finish()
        self._restore()

    def _restore(self) -> None:
        """Restore the previous signal handlers.

        Some launchers signal repeatedly and start their ranks with these signals ignored. A rank that has saved must
        not die of the next signal.
        """
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def write_marker(folder: Path, stage: str, step: int) -> None:
    """Write preempted.json into a fold's folder. The launcher exits with code 75 if it finds a fresh one."""
    marker = {
        "job_id": os.environ.get("SLURM_JOB_ID"),
        "restart_count": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        "stage": stage,
        "step": step,
    }
    atomic_write(folder / MARKER, json.dumps(marker) + "\n")


def exit_code() -> int:
    """Return the exit code of a stopped run: 0 under torchrun, which restarts or hides any other code, else 75."""
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else EXIT_PREEMPTED
