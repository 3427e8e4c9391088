"""A rank that hangs is told from one that has not begun, waits or works; nothing here waits for real minutes."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from integration.conftest import ROOT, environment

from pneumo_dist.ranks import watchdog as module
from pneumo_dist.ranks.watchdog import Watchdog

MINUTES = 30.0


def watching() -> bool:
    return any(thread.name == "watchdog" for thread in threading.enumerate())


class Watch:
    """A clock that is set by hand, and threads that look at it as often as they can and count their looks."""

    def __init__(self) -> None:
        self.now = 100.0
        self.events: list[threading.Event] = []
        self.looks: list[int] = []

    def monotonic(self) -> float:
        return self.now

    def event(self) -> threading.Event:
        number, watch = len(self.events), self

        class Counting(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                watch.looks[number] += 1
                return super().wait(0.001)

        self.looks.append(0)
        self.events.append(Counting())
        return self.events[-1]

    def look(self) -> None:
        """Return once every watching thread has gone round twice: it has then seen all that was before."""
        before = list(self.looks)
        for number, event in enumerate(self.events):
            for _ in range(500):  # a thread that has told its rank looks no more
                if self.looks[number] >= before[number] + 2 or event.is_set() or not watching():
                    break
                threading.Event().wait(0.001)

    def advance(self, minutes: float) -> None:
        self.now += minutes * 60.0
        self.look()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    made = Watch()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=made.monotonic))
    monkeypatch.setattr(module, "threading", SimpleNamespace(Event=made.event, Thread=threading.Thread))
    return made


@pytest.fixture
def started(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Watchdog, list[str]]]]:
    """Starts the watchdog of a rank, with the list of what it told; all share one store."""
    store = dist.HashStore()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    made: list[Watchdog] = []

    def start(rank: int = 0, world: int = 1) -> tuple[Watchdog, list[str]]:
        told: list[str] = []
        made.append(Watchdog(rank, world, MINUTES, told.append))
        return made[-1], told

    yield start
    for one in made:
        one.close()


Start = Callable[..., tuple[Watchdog, list[str]]]


def ended(watch: Watch, told: list[str]) -> str:
    """Return the one message of a watchdog that must have fired."""
    watch.look()
    (message,) = told
    return message


def test_rank_without_a_step_for_the_limit_is_told_with_its_step(watch: Watch, started: Start) -> None:
    one, told = started()
    one.beat(41)
    one.beat(42)
    watch.advance(MINUTES - 0.1)
    assert told == []
    watch.advance(0.2)
    assert ended(watch, told) == "rank 0 has not finished a step for 0:30:00 after step 42"
    watch.advance(10 * MINUTES)
    assert len(told) == 1


def test_nothing_is_watched_before_the_first_beat(watch: Watch, started: Start) -> None:
    _, told = started()
    watch.advance(5 * MINUTES)
    assert told == []


def test_nothing_is_watched_in_a_pause_but_after_the_next_beat(watch: Watch, started: Start) -> None:
    one, told = started()
    one.beat(1)
    one.pause()
    watch.advance(5 * MINUTES)
    assert told == []
    one.beat(2)
    watch.advance(MINUTES - 0.1)
    assert told == []
    watch.advance(0.2)
    assert "after step 2" in ended(watch, told)


def test_beating_rank_is_left_alone(watch: Watch, started: Start) -> None:
    one, told = started()
    for step in range(8):
        one.beat(step)
        watch.advance(0.9 * MINUTES)
    assert told == []


def test_late_rank_is_named_among_those_that_wait_for_it(watch: Watch, started: Start) -> None:
    ranks = [started(rank, 3) for rank in range(3)]
    for (one, _), step in zip(ranks, (7, 5, 7), strict=True):
        one.beat(step)
    watch.look()
    watch.advance(MINUTES + 0.1)
    for rank, (_, told) in enumerate(ranks):
        step = (7, 5, 7)[rank]
        assert ended(watch, told) == (
            f"rank {rank} has not finished a step for 0:30:00 after step {step}; the last known steps are "
            "{0: 7, 1: 5, 2: 7}: look at rank 1"
        )


def test_rank_that_never_told_a_step_is_named(watch: Watch, started: Start) -> None:
    one, told = started(0, 2)
    one.beat(3)
    watch.look()
    watch.advance(MINUTES + 0.1)
    assert ended(watch, told).endswith("{0: 3, 1: -1}: look at rank 1")


def test_close_ends_the_thread(watch: Watch, started: Start) -> None:
    one, told = started()
    one.beat(1)
    one.close()
    assert not watching()
    watch.advance(5 * MINUTES)
    assert told == []


def test_hanging_process_ends_with_the_message() -> None:
    hang = (
        "import threading\nfrom pneumo_dist.ranks import watchdog\nwatchdog._POLL_SECONDS = 0.01\n"
        "watchdog.Watchdog(0, 1, 0.001).beat(9)\nthreading.Event().wait(60)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", hang], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert result.returncode == 1
    assert "error: rank 0 has not finished a step for 0:00:00 after step 9" in result.stderr
