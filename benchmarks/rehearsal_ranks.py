"""One rank of many, alone in its process: a process group that counts messages instead of sending them.

torch has such a group for tests, `fake_pg`, but DistributedDataParallel cannot use it: the future of its all-reduce has
no value.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch.futures import Future

from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.watchdog import START

BACKEND = "rehearsal"


@dataclass
class Messages:
    """Messages of one kind in one phase: how many, and the bytes that this rank sends and receives.

    A sum counts as received once, although a ring moves about two times its size.
    """

    count: int = 0
    sent: int = 0
    received: int = 0


@dataclass
class Traffic:
    """The messages of a rehearsal by phase and kind, and the phase that the rank is in.

    `on_phase` is called with each phase that begins.
    """

    phase: str = START
    on_phase: Callable[[str], None] = lambda phase: None
    messages: dict[tuple[str, str], Messages] = field(default_factory=lambda: defaultdict(Messages))

    def begin(self, phase: str) -> None:
        """Count the following messages in a phase."""
        self.phase = phase
        self.on_phase(phase)

    def note(self, kind: str, sent: int, received: int) -> None:
        """Count a message in the present phase."""
        entry = self.messages[self.phase, kind]
        entry.count, entry.sent, entry.received = entry.count + 1, entry.sent + sent, entry.received + received


class _Done(dist._Work):
    """A finished collective."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self._future: Future[Any] = Future()
        self._future.set_result(value)

    def get_future(self) -> Future[Any]:
        return self._future

    def wait(self, timeout: timedelta | None = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


class _Group(dist.ProcessGroup):
    """Rank 0 of a group whose other ranks send what it sends; only counts."""

    def __init__(self, world: int, traffic: Traffic) -> None:
        super().__init__(0, world)
        self._world, self._traffic = world, traffic

    def getBackendName(self) -> str:
        return BACKEND

    def _set_sequence_number_for_group(self) -> None:
        pass

    def allreduce(self, tensors: Any, opts: Any = None) -> Any:  # type: ignore[override]
        size = _bytes(tensors)
        self._traffic.note("all-reduce", size, size)
        return _Done(tensors)

    def broadcast(self, tensors: Any, opts: Any = None) -> Any:  # type: ignore[override]
        self._traffic.note("broadcast", _bytes(tensors), 0)
        return _Done(tensors)

    def allgather(self, outputs: Any, own: Any, opts: Any = None) -> Any:
        self._traffic.note("all-gather", _bytes(own), _bytes(own) * (self._world - 1))
        for output in outputs[0]:
            output.copy_(own[0])
        return _Done(outputs)

    def gather(self, outputs: Any, own: Any, opts: Any = None) -> Any:  # type: ignore[override]
        self._traffic.note("to rank 0", 0, _bytes(own) * (self._world - 1))
        for output in outputs[0]:
            output.copy_(own[0])
        return _Done(outputs)

    def recv(self, tensors: Any, source: int, tag: int) -> Any:
        self._traffic.note("to rank 0", 0, _bytes(tensors))
        for tensor in tensors:
            tensor.zero_()
        return _Done(tensors)


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True)
class RehearsalRanks(Ranks):
    """Rank 0 of a world in which the other ranks do as much as it does, but contribute no films."""

    traffic: Traffic = field(default_factory=Traffic)

    def beat(self, phase: str, step: int | None = None) -> None:
        """Note the phase that begins."""
        self.traffic.begin(phase)

    def gather_array(self, array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Return this rank's array, and for the other ranks arrays without rows, or the same facts of a rank."""
        super().gather_array(array)
        is_of_a_rank = array.ndim == 0 or (array.ndim == 1 and array.dtype == np.float64)
        return [array, *[array if is_of_a_rank else array[:0]] * (self.world - 1)]

    def to_rank_0(self, payload: bytes) -> list[bytes]:
        """Return this rank's bytes."""
        super().to_rank_0(payload)
        return [payload]

    def sum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return this rank's values."""
        super().gather_array(values)
        return values


@contextmanager
def rehearsal(world: int) -> Iterator[RehearsalRanks]:
    """Join a world of `world` ranks as its rank 0."""
    traffic = Traffic()
    make: Callable[..., dist.ProcessGroup] = lambda *_: _Group(world, traffic)  # noqa: E731
    dist.Backend.register_backend(BACKEND, make, devices=["cpu"])
    dist.init_process_group(BACKEND, store=dist.HashStore(), rank=0, world_size=world)
    try:
        control = dist.new_group(backend=BACKEND)
        assert isinstance(control, dist.ProcessGroup)
        yield RehearsalRanks(0, world, 0, torch.device("cpu"), control, traffic=traffic)
    finally:
        dist.destroy_process_group()
