"""Every rank knows whether the others go on: a run that hangs, and one that has lost a rank, ends and says why.

A thread cannot interrupt a collective that waits for a lost rank, so it ends the process. torchrun then ends or starts
again those that are left.
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

# Phases of a rank; those of a stage's beginning load, build and compile.
START, FIRST_BATCH = "start", "first batch"
TRAINING, VALIDATION, STATISTICS, SAVE = "training", "validation", "batch-norm statistics", "save"
GATHER, FILMS, PREDICTION, SCORING, END = "gather", "films", "prediction", "scoring", "end"
_POLL_SECONDS = 1.0
# What a rank still has to do once another has failed: to finish a file, to print its own line.
GRACE_SECONDS = 5.0
_PATIENCE_SECONDS = 3.0


@dataclass(frozen=True)
class Limits:
    """Minutes without progress of any rank that end a run: before a stage's first step, and in every other phase."""

    start: float = 30.0
    work: float = 30.0

    def seconds(self, phase: str) -> float:
        """Return the limit of a phase."""
        return 60.0 * (self.start if phase in (START, FIRST_BATCH) else self.work)

    @property
    def longest(self) -> timedelta:
        """The timeout of collectives: later than the watchdog, which can name the rank that is waited for."""
        return timedelta(minutes=max(self.start, self.work) + 1.0)


@dataclass(frozen=True)
class Place:
    """Where a rank is: how often it has made progress, in which phase, after which optimizer step."""

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
    """Watches the progress of all ranks from two threads of each: one asks the group's store, one keeps the time.

    Apart because a store that cannot be reached does not answer. Ranks wait for each other in collectives, so a run
    hangs where none of them makes progress. Time in which the whole process was stopped, as by `scontrol suspend`, does
    not count. `leave` is called with the line to print, None where another rank prints it; it must end the process.
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
        # A connection of its own: the rank's waits for others.
        self._store = dist.PrefixStore("watchdog", store.clone()) if store is not None else None
        self._leave = leave or _end
        self._place = Place(rank, socket.gethostname(), os.getpid())
        self._moved = self._heard = time.monotonic()
        self._failure: Place | None = None
        self._stopped = threading.Event()
        watched = [("watchdog", self._watch), *([("watchdog-store", self._talk)] if self._store is not None else [])]
        self._threads = [threading.Thread(target=target, name=name, daemon=True) for name, target in watched]
        for thread in self._threads:
            thread.start()

    def beat(self, phase: str, step: int | None = None) -> None:
        """Note that this rank has made progress, which brought it into or onward in a phase."""
        place = self._place
        # One assignment, as the threads may read at any moment.
        step = place.step if step is None else step
        self._place = replace(place, phase=phase, step=step, beats=place.beats + 1)
        self._moved = time.monotonic()

    def idle_seconds(self) -> float:
        """Return for how long this rank has made no progress."""
        return time.monotonic() - self._moved

    def claim(self) -> bool:
        """Tell the others that this rank has failed. Return whether it is the first, whose line explains the end."""
        claimed = _in_time(self._claim) if self._store is not None else True
        # A store that does not answer leaves every rank to speak for itself.
        return claimed is not False

    def close(self) -> None:
        """End the threads."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(_PATIENCE_SECONDS)  # a store that is gone holds its thread for minutes

    def _claim(self) -> bool:
        assert self._store is not None
        mine = json.dumps(asdict(self._place))
        return self._store.compare_set("failed", "", mine).decode() == mine

    def _talk(self) -> None:
        """Tell the store of this rank's progress, and hear of that of the others."""
        assert self._store is not None
        told, known = -1, -1
        # The store is gone with the rank or agent that held it. The collectives or the limit will end this rank.
        with contextlib.suppress(RuntimeError):
            while not self._stopped.wait(_POLL_SECONDS):
                place = self._place
                if place.beats != told:
                    self._store.set(f"place {place.rank}", json.dumps(asdict(place)))
                beats = self._store.add("beats", int(place.beats != told))
                told = place.beats
                if beats != known:
                    known, self._heard = beats, time.monotonic()
                if self._failure is None and self._store.check(["failed"]):
                    self._failure = Place(**json.loads(self._store.get("failed")))

    def _watch(self) -> None:
        before = time.monotonic()
        failed_at: float | None = None
        while not self._stopped.wait(_POLL_SECONDS):
            now = time.monotonic()
            # A process that was stopped as a whole has not waited; one second is the poll's own.
            lost, before = max(0.0, now - before - 10 * _POLL_SECONDS), now
            self._moved, self._heard = self._moved + lost, self._heard + lost
            if self._failure is not None:
                failed_at = failed_at or now
                if now - failed_at >= GRACE_SECONDS:
                    return self._leave(self._distant(self._failure))
            place = self._place
            limit = self._limits.seconds(place.phase)
            if now - max(self._moved, self._heard) > limit:
                time.sleep(0.2 * self._local_rank)  # where the store is gone, the first of a node speaks for it
                return self._leave(self._described(place, limit) if self.claim() else None)
        return None

    def _distant(self, failure: Place) -> str | None:
        """Return the line of a node on whose terminal the failed rank cannot write; None for other ranks."""
        if failure.host == self._place.host or self._local_rank != 0:
            return None
        return f"{failure} has failed, its node says why; {self._place} ends with it"

    def _described(self, place: Place, limit: float) -> str:
        """Say what this rank waited for. Kill the ranks of its node that are behind: they may not end by themselves."""
        waited = f"{place} has made no progress for {timedelta(seconds=round(limit))} (runtime.{_option(place.phase)})"
        if self._store is None:
            return waited
        places = _in_time(self._places)
        if places is None:
            return f"{waited}, and the ranks' store cannot be reached; look at the network between the nodes"
        behind = min(each.beats for each in places)
        late = [each for each in places if each.beats == behind]
        if len(late) == self._world:
            return f"{waited}, nor has any other rank"
        for each in late:
            if each.pid != place.pid and each.host == place.host and _parent(each.pid) == os.getppid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGKILL)
        more = f" and {len(late) - 4} others" if len(late) > 4 else ""
        return f"{waited}; look at {', '.join(map(str, late[:4]))}{more}"

    def _places(self) -> list[Place]:
        """Return where every rank is; one that never began is at no host."""
        assert self._store is not None
        asked = [f"place {rank}" for rank in range(self._world)]
        known = [Place(**json.loads(self._store.get(key))) if self._store.check([key]) else None for key in asked]
        return [place or Place(rank, "an unknown host", 0, beats=-1) for rank, place in enumerate(known)]


def _parent(pid: int) -> int | None:
    """Return a process's parent, None where it is not to be seen: in another container, or gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _option(phase: str) -> str:
    return "start_minutes" if phase in (START, FIRST_BATCH) else "watchdog_minutes"


def _in_time(ask: Callable[[], Answer]) -> Answer | None:
    """Return what a store answers, None where it does not within a few seconds."""
    found: list[Answer] = []

    def work() -> None:
        with contextlib.suppress(RuntimeError):
            found.append(ask())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_PATIENCE_SECONDS)
    return found[0] if found else None


def _end(message: str | None) -> None:
    if message is not None:
        print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)
