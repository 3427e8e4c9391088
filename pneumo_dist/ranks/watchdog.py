"""A run that hangs says which rank and step it waits for, and ends, so that it can be started again."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

_POLL_SECONDS = 1.0


class Watchdog:
    """Watches one rank's steps from a thread of its own; ranks tell each other theirs through the group's store.

    Collectives that wait for a lost rank would wait for the group's whole timeout, which slow work of rank 0 needs to
    be long. Nothing is watched before the first `beat` and between `pause` and the next one: compiling, validation and
    saving take what they take.
    """

    def __init__(self, rank: int, world: int, minutes: float, on_hang: Callable[[str], None] | None = None) -> None:
        self._rank, self._world, self._limit = rank, world, minutes * 60.0
        self._on_hang = on_hang or _end
        self._store = dist.PrefixStore("watchdog", dist.distributed_c10d._get_default_store()) if world > 1 else None
        self._step = -1
        self._beaten: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, step: int) -> None:
        """Note that this rank has done `step` optimizer steps."""
        self._step, self._beaten = step, time.monotonic()

    def pause(self) -> None:
        """Stop watching until the next beat."""
        self._beaten = None

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        told = -1
        while not self._stopped.wait(_POLL_SECONDS):
            step, beaten = self._step, self._beaten
            if self._store is not None and step != told:
                with contextlib.suppress(RuntimeError):  # the store is gone with rank 0: that is when to go on watching
                    self._store.set(str(self._rank), str(step))
                told = step
            if beaten is not None and time.monotonic() - beaten > self._limit:
                self._on_hang(self._describe(step))
                return

    def _describe(self, step: int) -> str:
        waited = (
            f"rank {self._rank} has not finished a step for {timedelta(seconds=round(self._limit))} after step {step}"
        )
        if self._store is None:
            return waited
        steps = {rank: self._told(rank) for rank in range(self._world)}
        behind = min(steps.values())
        late = ", ".join(str(rank) for rank, done in steps.items() if done == behind)
        return f"{waited}; the last known steps are {steps}: look at rank {late}"

    def _told(self, rank: int) -> int:
        assert self._store is not None
        try:
            return int(self._store.get(str(rank))) if self._store.check([str(rank)]) else -1
        except RuntimeError:
            return -1


def _end(message: str) -> None:
    """A thread cannot interrupt a collective: the process ends at once, and torchrun ends or restarts the others."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)
