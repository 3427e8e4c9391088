"""Watchdog: ends a run that hangs or has lost a rank, and says which rank it waited for.

A thread cannot interrupt a collective that waits for a lost rank, so it ends the process. torchrun then ends or
restarts the remaining ranks.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

Answer = TypeVar("Answer")

# Phases of a rank. The first two load data, build the network and compile it.
START, FIRST_BATCH = "start", "first batch"
TRAINING, VALIDATION, STATISTICS, SAVE = "training", "validation", "batch-norm statistics", "save"
GATHER, FILMS, PREDICTION, SCORING, END = "gather", "films", "prediction", "scoring", "end"
_POLL_SECONDS = 1.0
# Time that a rank gets after another has failed, to finish a file or print its own message.
GRACE_SECONDS = 5.0
_PATIENCE_SECONDS = 3.0


@dataclass(frozen=True)
class Limits:
    """Minutes without progress on any rank after which a run ends: `start` before a stage's first step, else `work`."""

    start: float = 30.0
    work: float = 30.0

    def seconds(self, phase: str) -> float:
        """Return the limit of a phase in seconds."""
        return 60.0 * (self.start if phase in (START, FIRST_BATCH) else self.work)

    @property
    def longest(self) -> timedelta:
        """Timeout of collectives. It expires after the watchdog, which can name the rank that others wait for."""
        return timedelta(minutes=max(self.start, self.work) + 1.0)


@dataclass(frozen=True)
class Progress:
    """Progress of a rank: its phase, its last optimizer step, and how often it has reported progress."""

    rank: int
    host: str
    pid: int
    phase: str = START
    step: int | None = None
    beats: int = 0

    def __str__(self) -> str:
        after = "" if self.step is None else f" after step {self.step}"
        return f"rank {self.rank} on {self.host} in {self.phase}{after}"


class Watchdog:
    """Watches the progress of all ranks with two threads per rank.

    One thread talks to the group's store, the other keeps the time, because an unreachable store does not answer. Ranks
    wait for each other in collectives, so a run hangs only if none of them makes progress. Time during which the whole
    process was stopped, for example by `scontrol suspend`, does not count.

    `leave` must end the process. It is called with the message to print, or with None if another rank prints it.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        local_rank: int,
        limits: Limits,
        store: dist.Store | None,
        leave: Callable[[str | None], None] | None = None,
    ) -> None:
        self._world, self._local_rank, self._limits = world, local_rank, limits
        # A separate connection, because the rank's own blocks while it waits.
        self._store = dist.PrefixStore("watchdog", store.clone()) if store is not None else None
        self._leave = leave or _end
        self._progress = Progress(rank, socket.gethostname(), os.getpid())
        self._moved = self._heard = time.monotonic()
        self._failure: Progress | None = None
        self._stopped = threading.Event()
        watched = [("watchdog", self._watch), *([("watchdog-store", self._talk)] if self._store is not None else [])]
        self._threads = [threading.Thread(target=target, name=name, daemon=True) for name, target in watched]
        for thread in self._threads:
            thread.start()

    def beat(self, phase: str, step: int | None = None) -> None:
        """Report that this rank made progress, in a phase and after an optimizer step."""
        progress = self._progress
        step = progress.step if step is None else step
        # A single assignment, because the threads may read at any moment.
        self._progress = replace(progress, phase=phase, step=step, beats=progress.beats + 1)
        self._moved = time.monotonic()

    def idle_seconds(self) -> float:
        """Return the seconds since this rank last made progress."""
        return time.monotonic() - self._moved

    def claim(self) -> bool:
        """Tell the others that this rank has failed. Return whether it is the first, which prints the reason."""
        claimed = _in_time(self._claim) if self._store is not None else True
        # If the store does not answer, every rank prints its own reason.
        return claimed is not False

    def close(self) -> None:
        """End the threads."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(_PATIENCE_SECONDS)  # a lost store blocks its thread for minutes

    def _claim(self) -> bool:
        assert self._store is not None
        mine = json.dumps(asdict(self._progress))
        return self._store.compare_set("failed", "", mine).decode() == mine

    def _talk(self) -> None:
        """Publish this rank's progress in the store, and read how the others progress."""
        assert self._store is not None
        published, known = -1, -1
        # The store is gone if its rank or agent is. The collectives or the limit then end this rank.
        with contextlib.suppress(RuntimeError):
            while not self._stopped.wait(_POLL_SECONDS):
                progress = self._progress
                if progress.beats != published:
                    self._store.set(f"progress {progress.rank}", json.dumps(asdict(progress)))
                beats = self._store.add("beats", int(progress.beats != published))
                published = progress.beats
                if beats != known:
                    known, self._heard = beats, time.monotonic()
                if self._failure is None and self._store.check(["failed"]):
                    self._failure = Progress(**json.loads(self._store.get("failed")))

    def _watch(self) -> None:
        before = time.monotonic()
        failed_at: float | None = None
        while not self._stopped.wait(_POLL_SECONDS):
            now = time.monotonic()
            # A process that was stopped as a whole did not wait. The poll itself takes a second.
            lost, before = max(0.0, now - before - 10 * _POLL_SECONDS), now
            self._moved, self._heard = self._moved + lost, self._heard + lost
            if self._failure is not None:
                failed_at = failed_at or now
                if now - failed_at >= GRACE_SECONDS:
                    return self._leave(self._distant(self._failure))
            progress = self._progress
            limit = self._limits.seconds(progress.phase)
            if now - max(self._moved, self._heard) > limit:
                time.sleep(0.2 * self._local_rank)  # without a store, the first rank of a node speaks for it
                return self._leave(self._described(progress, limit) if self.claim() else None)
        return None

    def _distant(self, failure: Progress) -> str | None:
        """Return the message for a node whose terminal the failed rank cannot reach; None on all but its first rank."""
        if failure.host == self._progress.host or self._local_rank != 0:
            return None
        return f"{failure} has failed, its node says why; {self._progress} ends with it"

    def _described(self, progress: Progress, limit: float) -> str:
        """Return what this rank waited for. Kill late ranks on its node, which may not end by themselves."""
        seconds = timedelta(seconds=round(limit))
        waited = f"{progress} has made no progress for {seconds} (runtime.{_option(progress.phase)})"
        if self._store is None:
            return waited
        ranks = _in_time(self._all_progress)
        if ranks is None:
            return f"{waited}, and the ranks' store cannot be reached; check the network between the nodes"
        fewest = min(each.beats for each in ranks)
        late = [each for each in ranks if each.beats == fewest]
        if len(late) == self._world:
            return f"{waited}, nor has any other rank"
        for each in late:
            if each.pid != progress.pid and each.host == progress.host and _parent(each.pid) == os.getppid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGKILL)
        more = f" and {len(late) - 4} others" if len(late) > 4 else ""
        return f"{waited}; check {', '.join(map(str, late[:4]))}{more}"

    def _all_progress(self) -> list[Progress]:
        """Return the progress of every rank. The host of a rank that never started is unknown."""
        assert self._store is not None
        ranks = []
        for rank in range(self._world):
            key = f"progress {rank}"
            if self._store.check([key]):
                ranks.append(Progress(**json.loads(self._store.get(key))))
            else:
                ranks.append(Progress(rank, "an unknown host", 0, beats=-1))
        return ranks


def _parent(pid: int) -> int | None:
    """Return a process's parent; None if the process is gone or in another container."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _option(phase: str) -> str:
    return "start_minutes" if phase in (START, FIRST_BATCH) else "watchdog_minutes"


def _in_time(ask: Callable[[], Answer]) -> Answer | None:
    """Return the answer of a store, None if it does not answer within a few seconds."""
    answers: list[Answer] = []

    def work() -> None:
        with contextlib.suppress(RuntimeError):
            answers.append(ask())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_PATIENCE_SECONDS)
    return answers[0] if answers else None


def _end(message: str | None) -> None:
    if message is not None:
        print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)
