"""The watchdog tells a run that hangs from one that works. No test waits for real minutes."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from integration.conftest import ROOT, environment

from pneumo_dist.ranks import watchdog as module
from pneumo_dist.ranks.watchdog import (
    FIRST_BATCH,
    SAVE,
    START,
    TRAINING,
    VALIDATION,
    Limits,
    Watchdog,
)

MINUTES = 30.0
LIMITS = Limits(start=2 * MINUTES, work=MINUTES)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("watchdog")]


class Watch:
    """A clock that is set by hand, and threads that read it continuously and count their reads."""

    def __init__(self) -> None:
        self.now = 100.0
        self.looks: dict[threading.Thread, int] = {}

    def monotonic(self) -> float:
        return self.now

    def event(self) -> threading.Event:
        watch = self

        class Counting(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                thread = threading.current_thread()
                watch.looks[thread] = watch.looks.get(thread, 0) + 1
                return super().wait(0.001)

        return Counting()

    def look(self) -> None:
        """Return when every watching thread has made a full turn and has read the others' messages."""
        for _ in range(3):
            before = {thread: self.looks.get(thread, 0) for thread in threads()}
            while any(thread.is_alive() and self.looks.get(thread, 0) < seen + 2 for thread, seen in before.items()):
                threading.Event().wait(0.001)

    def advance(self, minutes: float) -> None:
        self.now += minutes * 60.0
        self.look()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    made = Watch()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=made.monotonic, sleep=lambda seconds: None))
    monkeypatch.setattr(socket, "gethostname", lambda: "alpha")
    monkeypatch.setattr(module, "_POLL_SECONDS", 1e9)  # jumps of this clock do not count as a stopped process
    monkeypatch.setattr(module, "threading", SimpleNamespace(Event=made.event, Thread=threading.Thread))
    return made


@pytest.fixture
def started(watch: Watch) -> Iterator["Start"]:
    """Starts the watchdog of a rank and returns its messages. All ranks share one store."""
    store = dist.HashStore()
    made: list[Watchdog] = []

    def start(rank: int = 0, world: int = 1) -> tuple[Watchdog, list[str | None]]:
        told: list[str | None] = []
        made.append(Watchdog(rank, world, rank, LIMITS, store if world > 1 else None, told.append))
        return made[-1], told

    yield start
    for one in made:
        one.close()


Start = Callable[..., tuple[Watchdog, list[str | None]]]


@pytest.mark.parametrize(
    ("phase", "limit", "option"),
    [
        (START, 2 * MINUTES, "1:00:00 (runtime.start_minutes)"),
        (FIRST_BATCH, 2 * MINUTES, "1:00:00 (runtime.start_minutes)"),
        (TRAINING, MINUTES, "0:30:00 (runtime.watchdog_minutes)"),
        (VALIDATION, MINUTES, "0:30:00 (runtime.watchdog_minutes)"),
        (SAVE, MINUTES, "0:30:00 (runtime.watchdog_minutes)"),
    ],
)
def test_every_phase_has_its_limit(watch: Watch, started: Start, phase: str, limit: float, option: str) -> None:
    one, told = started()
    one.beat(phase, 42)
    watch.advance(limit - 0.1)
    assert told == []
    watch.advance(0.2)
    watch.look()
    assert told == [f"rank 0 on alpha in {phase} after step 42 has made no progress for {option}"]
    watch.advance(10 * limit)
    assert len(told) == 1


def test_it_watches_before_the_first_beat(watch: Watch, started: Start) -> None:
    _, told = started()
    watch.advance(2 * MINUTES + 0.1)
    watch.look()
    assert told == ["rank 0 on alpha in start has made no progress for 1:00:00 (runtime.start_minutes)"]


def test_rank_with_beats_does_not_fail(watch: Watch, started: Start) -> None:
    one, told = started()
    for step in range(8):
        one.beat(TRAINING, step)
        watch.advance(0.9 * MINUTES)
    assert told == []


def test_rank_that_waits_for_a_working_rank_does_not_fail(watch: Watch, started: Start) -> None:
    (waits, told), (works, _) = started(0, 2), started(1, 2)
    waits.beat(TRAINING, 1)
    for step in range(8):
        works.beat(TRAINING, step)
        watch.advance(0.9 * MINUTES)
    assert told == []


def test_late_rank_is_named_once_by_the_ranks_that_wait_for_it(watch: Watch, started: Start) -> None:
    ranks = [started(rank, 3) for rank in range(3)]
    for (one, _), steps in zip(ranks, (7, 5, 7), strict=True):
        for step in range(1, steps + 1):
            one.beat(TRAINING, step)
    watch.look()
    watch.advance(MINUTES + 0.1)
    for _ in range(5):
        watch.look()
    told = [line for _, lines in ranks for line in lines]
    (line,) = [line for line in told if line is not None]
    assert len(told) == 3, "the others leave without a word"
    assert line.endswith("check rank 1 on alpha in training after step 5")


def test_rank_that_never_started_is_named(watch: Watch, started: Start) -> None:
    one, told = started(0, 2)
    one.beat(TRAINING, 3)
    watch.look()
    watch.advance(MINUTES + 0.1)
    for _ in range(5):
        watch.look()
    assert told[0] is not None and told[0].endswith("check rank 1 on an unknown host in start")


def test_first_failure_is_claimed_once_and_ends_the_others_after_a_grace(watch: Watch, started: Start) -> None:
    (first, _), (second, told) = started(0, 2), started(1, 2)
    assert [first.claim(), second.claim()] == [True, False]
    watch.look()
    watch.look()
    assert told == []
    watch.now += module.GRACE_SECONDS
    watch.look()
    assert told == [None]


def test_other_host_names_the_host_of_the_failed_rank(
    watch: Watch, started: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, told = started(0, 2)
    monkeypatch.setattr(socket, "gethostname", lambda: "beta")
    far, _ = started(1, 2)
    far.beat(VALIDATION, 9)
    assert far.claim()
    watch.look()
    watch.look()
    watch.now += module.GRACE_SECONDS
    watch.look()
    assert told == [
        "rank 1 on beta in validation after step 9 has failed, its node says why; rank 0 on alpha in start ends with it"
    ]


def test_time_while_the_process_was_stopped_does_not_count(
    watch: Watch, started: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 1.0)
    one, told = started()
    one.beat(TRAINING, 3)
    watch.advance(60 * MINUTES)
    assert told == []
    for _ in range(31 * 60 // 9):
        watch.advance(0.15)
    watch.look()
    assert len(told) == 1


def test_close_ends_the_threads(watch: Watch, started: Start) -> None:
    one, told = started(0, 2)
    one.beat(TRAINING, 1)
    one.close()
    assert not threads()
    watch.advance(5 * MINUTES)
    assert told == []


def test_hanging_process_ends_with_the_message() -> None:
    hang = (
        "import threading\nfrom pneumo_dist.ranks import watchdog\nwatchdog._POLL_SECONDS = 0.01\n"
        "watchdog.Watchdog(0, 1, 0, watchdog.Limits(1, 0.001), None).beat('training', 9)\nthreading.Event().wait(60)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", hang], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert result.returncode == 1
    assert "in training after step 9 has made no progress for 0:00:00" in result.stderr
