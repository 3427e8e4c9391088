"""What a round does to a running command, and for which commands it can be done."""

import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .chain import START_SECONDS, WATCHDOG_SECONDS, Step
from .processes import Process, Running

# Longest wait for the end of all processes. A signal waits for a step, a save and the loader; a kill for the kernel,
# and for ranks that notice that another is gone.
KILL_SECONDS, SIGNAL_SECONDS = 45.0, 90.0
# Ranks that have not met yet wait for a minute more than the limit (`Limits.longest`). Then torchrun sends TERM to the
# stopped rank, which cannot hear it, and KILL after 30 seconds.
STOP_SECONDS = max(WATCHDOG_SECONDS, START_SECONDS) + 60.0 + 30.0 + 20.0
REPEAT_SECONDS = 0.4

Strike = Callable[[Running, random.Random], bool]


@dataclass(frozen=True)
class Fault:
    """A fault that strikes a running command at some moment.

    Attributes:
        strike: Does it. Returns False if the process that it is meant for does not exist at that moment.
        applies: Tells whether it can strike a command.
        limit: Seconds in which all processes must have ended.
    """

    name: str
    strike: Strike
    applies: Callable[[Step], bool]
    limit: float


def _send(number: signal.Signals, targets: Callable[[Running], Sequence[Process]]) -> Strike:
    def strike(running: Running, chance: random.Random) -> bool:
        found = sorted(targets(running), key=lambda each: each.pid)
        if found:
            running.send(number, [chance.choice(found).pid])
        return bool(found)

    return strike


def _main(number: signal.Signals, times: int = 1) -> Strike:
    def strike(running: Running, chance: random.Random) -> bool:
        for _ in range(times):
            running.send(number, [running.process.pid])
            time.sleep(REPEAT_SECONDS if times > 1 else 0)
        return True

    return strike


def _group(number: signal.Signals, times: int = 1) -> Strike:
    def strike(running: Running, chance: random.Random) -> bool:
        for _ in range(times):
            running.send_group(number)
            time.sleep(REPEAT_SECONDS if times > 1 else 0)
        return True

    return strike


def _any(step: Step) -> bool:
    return True


def _has_ranks(step: Step) -> bool:
    return step.ranks > 1


def _has_workers(step: Step) -> bool:
    return step.kind == "build"  # append adds one shard, which needs no worker


KILL, TERM, INT, HUP, STOP = signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSTOP
STRIKES = (
    Fault("kill main", _main(KILL), _any, KILL_SECONDS),
    Fault("kill group", _group(KILL), _any, KILL_SECONDS),
    Fault("kill leaf", _send(KILL, Running.leaves), _any, KILL_SECONDS),
    Fault("kill agent", _main(KILL), _has_ranks, KILL_SECONDS),
    Fault("kill rank 0", _send(KILL, lambda running: running.rank(0)), _has_ranks, KILL_SECONDS),
    Fault("kill rank 1", _send(KILL, lambda running: running.rank(1)), _has_ranks, KILL_SECONDS),
    Fault("kill loader", _send(KILL, Running.workers), _has_ranks, KILL_SECONDS),
    Fault("kill build worker", _send(KILL, Running.workers), _has_workers, KILL_SECONDS),
    Fault("TERM", _main(TERM), _any, SIGNAL_SECONDS),
    Fault("INT", _group(INT), _any, SIGNAL_SECONDS),
    Fault("HUP", _group(HUP), _any, SIGNAL_SECONDS),
    Fault("TERM twice", _main(TERM, 2), _any, SIGNAL_SECONDS),
    Fault("INT twice", _group(INT, 2), _any, SIGNAL_SECONDS),
    Fault("TERM rank 0", _send(TERM, lambda running: running.rank(0)), _has_ranks, SIGNAL_SECONDS),
    Fault("STOP rank 0", _send(STOP, lambda running: running.rank(0)), _has_ranks, STOP_SECONDS),
    Fault("STOP rank 1", _send(STOP, lambda running: running.rank(1)), _has_ranks, STOP_SECONDS),
)
