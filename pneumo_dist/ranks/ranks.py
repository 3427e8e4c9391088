"""Ranks and what they tell each other. Nothing is pickled: messages are bytes, JSON or arrays."""

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from pneumo_dist.ranks.environment import TORCHRUN, place_of
from pneumo_dist.ranks.processes import die_with_parent
from shards.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """This process among the others. Collectives run on a gloo group; alone they return what they were given."""

    rank: int
    world: int
    local_rank: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device_id(self) -> int | None:
        """The GPU's number, None on the CPU."""
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
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return [np.load(io.BytesIO(p), allow_pickle=False) for p in self.gather_bytes(buffer.getvalue())]

    def broadcast_json(self, value: Any) -> Any:
        """Return rank 0's value (plain JSON types) on every rank."""
        payload = json.dumps(value).encode() if self.is_main else b""
        return json.loads(self.gather_bytes(payload)[0])

    def sum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the sum over ranks, added in rank order."""
        return np.asarray(np.sum(self.gather_array(values), axis=0), np.float64)

    def gpu_memory_mb(self) -> float:
        """Return the largest GPU memory that tensors of this rank took so far, in MiB; 0 on the CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 2**20 if self.device.type == "cuda" else 0.0

    def broadcast_buffers(self, model: torch.nn.Module) -> None:
        """Give every rank rank 0's buffers: batch-norm statistics differ after each step."""
        if self.control is not None:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


def check_agreement(ranks: Ranks, facts: Mapping[str, str]) -> None:
    """Raise InputError on every rank where ranks were started with different things; `facts` name and describe them."""
    described = [json.loads(payload) for payload in ranks.gather_bytes(json.dumps(dict(facts)).encode())]
    for name in facts:
        values = [each[name] for each in described]
        if len(set(values)) > 1:
            odd = [rank for rank, value in enumerate(values) if value != values[0]]
            raise InputError(
                f"ranks disagree on {name}: rank {odd[0]} has {values[odd[0]]}, rank 0 has {values[0]}; start all "
                "ranks with the same code, config and shards"
            )


def on_rank_0(ranks: Ranks, look: Callable[[], Any]) -> Any:
    """Return on every rank what `look` (plain JSON types) finds on rank 0; an InputError is raised on every rank.

    The other ranks would otherwise wait for an answer of one that has ended.
    """
    answer: dict[str, Any] | None = None
    if ranks.is_main:
        try:
            answer = {"found": look()}
        except InputError as error:
            answer = {"error": str(error)}
    answer = ranks.broadcast_json(answer)
    assert answer is not None
    if "error" in answer:
        raise InputError(answer["error"])
    return answer["found"]


def pick_device(local_rank: int, cpu: bool) -> torch.device:
    """Return the device of a local rank. Raises InputError for a GPU that is present but unusable."""
    if cpu:
        return torch.device("cpu")
    if torch.cuda.is_available():
        try:
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
            torch.ones(1, device=device).add_(1)
        except RuntimeError as error:
            raise InputError(f"GPU {local_rank} is present but unusable: {error}; mend it or pass --cpu") from None
        return device
    if any(Path(path).exists() for path in ("/proc/driver/nvidia/version", "/dev/nvidiactl")):
        raise InputError(
            "a GPU is present but this torch build cannot use it (an old driver or a CPU build); mend it or pass --cpu"
        )
    return torch.device("cpu")


def _attempt_store() -> dist.Store:
    """Return the store in which the ranks of this attempt find each other.

    torchrun's agent keeps one store for all its attempts: a rank that is started again would find the addresses of
    those that are gone. The count of restarts tells attempts apart, but on several nodes the agents' counts differ:
    there torchrun has to make a store for each attempt. Raises InputError where it does not.
    """
    store: dist.Store = next(dist.rendezvous("env://"))[0]
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
def process_group(cpu: bool) -> Iterator[Ranks]:
    """Join torchrun's process group (gloo, and NCCL on GPUs), or stand alone without torchrun; leave it at the end."""
    place = place_of(os.environ)
    if place is None:
        yield Ranks(0, 1, 0, pick_device(0, cpu))
        return
    rank, world, local = place.rank, place.world, place.local_rank
    device = pick_device(local, cpu)
    if TORCHRUN in os.environ:
        # torchrun gives ranks sessions of their own: a killed agent would leave them behind, writing into the run that
        # its successor resumes.
        die_with_parent()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=_attempt_store(), rank=rank, world_size=world
    )
    try:
        control = dist.new_group(backend="gloo")
        assert isinstance(control, dist.ProcessGroup)
        yield Ranks(rank, world, local, device, control)
    finally:
        dist.destroy_process_group()
