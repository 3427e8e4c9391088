"""Ranks as threads of one process. They exchange messages through memory, and every message is counted."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from pneumo_dist.ranks.ranks import Ranks

Value = TypeVar("Value")


class Exchange:
    """The messages between some ranks. `received` is the number of bytes that each rank has received from others."""

    def __init__(self, world: int) -> None:
        self.received = [0] * world
        self._barrier = threading.Barrier(world, timeout=120)
        self._slots: list[Any] = [None] * world

    def __call__(self, rank: int, value: Any) -> list[Any]:
        """Return what every rank gives, in rank order."""
        self._slots[rank] = value
        self._barrier.wait()
        values = list(self._slots)
        self._barrier.wait()
        return values

    def abort(self) -> None:
        self._barrier.abort()


@dataclass(frozen=True)
class ThreadedRank(Ranks):
    """A rank that is a thread."""

    exchange: Exchange = field(default_factory=lambda: Exchange(1))

    def gather_bytes(self, payload: bytes) -> list[bytes]:
        values = self.exchange(self.rank, payload)
        self.exchange.received[self.rank] += sum(map(len, values)) - len(payload)
        return values

    def to_rank_0(self, payload: bytes) -> list[bytes]:
        values = self.exchange(self.rank, payload)
        if not self.is_main:
            return []
        self.exchange.received[0] += sum(map(len, values)) - len(payload)
        return values

    def from_rank_0(self, compute: Callable[[], Any]) -> Any:
        answer = self.exchange(self.rank, json.dumps(compute()) if self.is_main else None)[0]
        return json.loads(answer)


def on_ranks(world: int, work: Callable[[Ranks], Value]) -> tuple[list[Value], Exchange]:
    """Return the result of some work on each rank, and the messages of the ranks."""
    exchange = Exchange(world)

    def on_rank(rank: int) -> Value:
        try:
            return work(ThreadedRank(rank, world, rank, torch.device("cpu"), exchange=exchange))
        except BaseException:
            exchange.abort()  # the others would wait for this rank
            raise

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(on_rank, range(world))), exchange
