"""Stopping on a signal: the handler sets a flag, the ranks agree on it, one of them leaves a marker."""

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


class Preempted(Exception):
    """Raised after the checkpoint of a stopped run is written."""


class Request(IntEnum):
    """What a rank wants done at a step's boundary."""

    NONE = 0
    SAVE = 1
    STOP = 2


class StopAgreement:
    """Turns a signal to any rank, or one rank's wish to save, into one decision of all, two polls later at the latest.

    As a context it is closed at its end; after an error the last reduction is left, as other ranks may not poll again.
    Each poll starts an asynchronous MAX reduction of the flags and reads the previous one, so it waits for nothing.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._signalled = False
        self._flag = torch.zeros(1)
        self._pending: dist.Work | None = None
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def poll(self, wants_save: bool = False) -> Request:
        """Return what the ranks agreed on: the most urgent of their requests. All ranks must poll equally often."""
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
        """Put back what handled the signals before.

        A launcher that signals again and again has them ignored before: a rank that has saved must not die of it.
        """
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def write_marker(folder: Path, stage: str, step: int) -> None:
    """Leave preempted.json in a fold's folder: the launcher turns a fresh one into exit code 75."""
    marker = {
        "job_id": os.environ.get("SLURM_JOB_ID"),
        "restart_count": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        "stage": stage,
        "step": step,
    }
    atomic_write(folder / MARKER, json.dumps(marker) + "\n")


def exit_code() -> int:
    """Return 0 under torchrun (it would restart or hide any other code), else 75."""
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else EXIT_PREEMPTED
