"""Ranks and the messages between them: bytes, JSON or arrays. Nothing is pickled."""

import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from pneumo_dist.ranks.ending import FailedElsewhere
from pneumo_dist.ranks.environment import launched_rank
from pneumo_dist.ranks.processes import die_with_agent
from pneumo_dist.ranks.watchdog import END, Limits, Watchdog
from shards.errors import InputError

# One wait for a key of the store. Waits are repeated, because work on rank 0 can outlast the group's timeout.
_WAIT = timedelta(seconds=60)


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a run. A single process gets back what it passes to a collective.

    Attributes:
        rank: Number of this rank.
        world: Number of ranks.
        local_rank: Number of this rank on its node.
        device: Device that this rank computes on.
        control: gloo group for collectives, None in a single process.
        store: Store for answers of rank 0.
        watchdog: Watchdog to which progress is reported.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    store: dist.Store | None = None
    watchdog: Watchdog | None = None
    _answers: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

    @classmethod
    def alone(cls, device: str | torch.device = "cpu", watchdog: Watchdog | None = None) -> Self:
        """Return the only rank of a process that works without torchrun."""
        return cls(0, 1, 0, torch.device(device), watchdog=watchdog)

    def beat(self, phase: str, step: int | None = None) -> None:
        """Report progress. The watchdog ends a run in which no rank reports any for the limit of its phase."""
        if self.watchdog is not None:
            self.watchdog.beat(phase, step)

    def idle_seconds(self) -> float:
        """Return the seconds since this rank last made progress; 0 without a watchdog."""
        return 0.0 if self.watchdog is None else self.watchdog.idle_seconds()

    def from_rank_0(self, compute: Callable[[], Any]) -> Any:
        """Call `compute` on rank 0 and return its result (plain JSON types) on every rank.

        The other ranks wait as long as rank 0 makes progress.
        """
        if self.store is None:
            return json.loads(json.dumps(compute()))
        key = f"answer {next(self._answers)}"
        if self.is_main:
            self.store.set(key, json.dumps(compute()))
        while not _is_there(self.store, key):
            continue
        return json.loads(self.store.get(key))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device_id(self) -> int | None:
        """The index of the GPU, None on the CPU."""
        return self.local_rank if self.device.type == "cuda" else None

    def gather_bytes(self, payload: bytes) -> list[bytes]:
        """Return every rank's bytes, in rank order, on every rank."""
        if self.control is None:
            return [payload]
        size = torch.tensor([len(payload)])
        sizes = [torch.zeros_like(size) for _ in range(self.world)]
        dist.all_gather(sizes, size, group=self.control)
        longest = max(int(s) for s in sizes)
        padded = torch.zeros(max(longest, 1), dtype=torch.uint8)
        if payload:
            padded[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        received = [torch.zeros_like(padded) for _ in range(self.world)]
        dist.all_gather(received, padded, group=self.control)
        return [r.numpy()[: int(s)].tobytes() for r, s in zip(received, sizes, strict=True)]

    def gather_array(self, array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Return every rank's array, in rank order; shapes may differ."""
        return [_array_of(payload) for payload in self.gather_bytes(_bytes_of(array))]

    def to_rank_0(self, payload: bytes) -> list[bytes]:
        """Return every rank's bytes, in rank order, on rank 0, and nothing on the other ranks."""
        if self.control is None:
            return [payload]
        size = torch.tensor([len(payload)])
        sizes = [torch.zeros_like(size) for _ in range(self.world)] if self.is_main else None
        dist.gather(size, sizes, dst=0, group=self.control)
        if sizes is None:
            if payload:
                dist.send(torch.frombuffer(bytearray(payload), dtype=torch.uint8), dst=0, group=self.control)
            return []
        received = [torch.empty(int(each), dtype=torch.uint8) for each in sizes]
        waiting = [
            dist.irecv(buffer, src=rank, group=self.control)
            for rank, buffer in enumerate(received)
            if rank != self.rank and len(buffer)
        ]
        for each in waiting:
            assert each is not None
            each.wait()
        return [payload, *(buffer.numpy().tobytes() for buffer in received[1:])]

    def arrays_to_rank_0(self, array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Return every rank's array, in rank order, on rank 0, and nothing on the other ranks; shapes may differ."""
        return [_array_of(payload) for payload in self.to_rank_0(_bytes_of(array))]

    def sum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the sum over all ranks, added in rank order."""
        return np.asarray(np.sum(self.gather_array(values), axis=0), np.float64)

    def gpu_memory_mb(self) -> float:
        """Return the peak GPU memory of this rank's tensors, in MiB; 0 on the CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 2**20 if self.device.type == "cuda" else 0.0

    def broadcast_buffers(self, model: torch.nn.Module) -> None:
        """Copy rank 0's buffers to every rank. Batch-norm statistics differ between ranks after each step."""
        if self.control is not None:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


def _bytes_of(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _array_of(payload: bytes) -> npt.NDArray[Any]:
    return np.asarray(np.load(io.BytesIO(payload), allow_pickle=False))


def check_agreement(ranks: Ranks, facts: Mapping[str, str]) -> None:
    """Raise InputError on every rank if the ranks were started with different facts, such as code or config."""
    described = [json.loads(payload) for payload in ranks.gather_bytes(json.dumps(dict(facts)).encode())]
    for name in facts:
        values = [each[name] for each in described]
        if len(set(values)) > 1:
            odd = [rank for rank, value in enumerate(values) if value != values[0]]
            raise InputError(
                f"ranks disagree on {name}: rank {odd[0]} has {values[odd[0]]}, rank 0 has {values[0]}; start all "
                "ranks with the same code, config and shards"
            )


def on_rank_0(ranks: Ranks, compute: Callable[[], Any]) -> Any:
    """Like `Ranks.from_rank_0`, but an InputError on rank 0 is raised on every rank.

    The other ranks would otherwise wait for the answer of a rank that has ended.
    """

    def answer() -> dict[str, Any]:
        try:
            return {"result": compute()}
        except InputError as error:
            return {"error": str(error)}

    answered = ranks.from_rank_0(answer)
    if "error" in answered:
        raise InputError(answered["error"])
    return answered["result"]


def _is_there(store: dist.Store, key: str) -> bool:
    """Wait for a key for up to a minute; return whether it exists."""
    try:
        store.wait([key], _WAIT)
    except dist.DistStoreError:
        return False
    return True


def pick_device(local_rank: int, cpu: bool) -> torch.device:
    """Return the device of a local rank. Raises InputError if a GPU is present but unusable."""
    if cpu:
        return torch.device("cpu")
    if torch.cuda.is_available():
        try:
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
            torch.ones(1, device=device).add_(1)
        except RuntimeError as error:
            raise InputError(f"GPU {local_rank} is present but unusable: {error}; fix it or pass --cpu") from None
        return device
    if any(Path(path).exists() for path in ("/proc/driver/nvidia/version", "/dev/nvidiactl")):
        raise InputError(
            "a GPU is present but this torch build cannot use it (an old driver or a CPU build); fix it or pass --cpu"
        )
    return torch.device("cpu")


def _attempt_store(timeout: timedelta) -> dist.Store:
    """Return the store through which the ranks of this attempt meet.

    torchrun's agent keeps one store for all attempts, so a restarted rank would read the addresses of ranks that are
    gone. On one node, the restart count separates the attempts. On several nodes the agents' counts differ, and
    torchrun must create a store for each attempt.

    Raises:
        InputError: Several nodes restart ranks and share one store.
    """
    store: dist.Store = next(dist.rendezvous("env://", timeout=timeout))[0]
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store
    if os.environ["GROUP_WORLD_SIZE"] == "1":
        return dist.PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    if os.environ["TORCHELASTIC_MAX_RESTARTS"] != "0":
        raise InputError(
            "torchrun --max-restarts on several nodes needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"
        )
    return store


@contextmanager
def process_group(cpu: bool, limits: Limits | None = None) -> Iterator[Ranks]:
    """Join torchrun's process group (gloo, and NCCL on GPUs) and leave it at the end. Without torchrun, work alone.

    A run that makes no progress for longer than `limits` is ended. A single process is only watched if `limits` is
    set. An error is raised on the first rank that fails, and FailedElsewhere on the others. The group still exists
    then, and the process must end, as `end_after` does.
    """
    launched = launched_rank(os.environ)
    if launched is None:
        alone = Watchdog(0, 1, 0, limits, None) if limits is not None else None
        try:
            yield Ranks.alone(pick_device(0, cpu), alone)
        finally:
            if alone is not None:
                alone.close()
        return
    rank, world, local = launched.rank, launched.world, launched.local_rank
    device = pick_device(local, cpu)
    die_with_agent()
    limits = limits or Limits()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = _attempt_store(limits.longest)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limits.longest)
    watchdog = Watchdog(rank, world, local, limits, store)
    try:
        control = dist.new_group(backend="gloo", timeout=limits.longest)
        assert isinstance(control, dist.ProcessGroup)
        yield Ranks(rank, world, local, device, control, dist.PrefixStore("answers", store), watchdog)
        # Rank 0 may have written a file meanwhile. Ranks end together, so that the agent can tell one that hangs.
        watchdog.beat(END)
        dist.barrier(control)
    except BaseException as error:
        if watchdog.claim():
            raise
        raise FailedElsewhere from error
    dist.destroy_process_group()
    watchdog.close()
