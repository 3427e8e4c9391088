"""An epoch of training in numbers: what its steps came to so far, and how fast they went."""

import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pneumo_dist.data.films import Batch
from pneumo_dist.ranks.processes import peak_memory_mb
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.train.step import Step
from shards.errors import InputError

# What is summed besides the losses, in the order in which a checkpoint holds it.
COUNTED = ("overlap", "pixels", "steps", "grad_norm", "overflowed_steps", "bad_steps")
# What `speed` returns: the machine's, which differs between two runs that compute the same.
MEASURED = ("images_per_s", "data_wait_share", "peak_memory_mb", "peak_gpu_memory_mb")


class EpochLog:
    """The sums of an epoch on one rank, and its clock.

    Each rank adds its share, one over the number of ranks: what all ranks hold together is then the run's, also where
    a part of the epoch was trained by another number of ranks. `terms` names the losses of a step.
    """

    def __init__(self, terms: Sequence[str], global_batch: int, ranks: Ranks) -> None:
        self._names = (*terms, *COUNTED)
        self._terms, self._global_batch, self._ranks = terms, global_batch, ranks
        self._sums = np.zeros(len(self._names))
        self._seconds = self._waited = 0.0
        self._taken = 0

    def restore(self, sums: Sequence[float]) -> None:
        """Take up what `totals` gave; rank 0 holds it for all. Raises InputError for sums of another kind."""
        if len(sums) > len(self._names):
            raise InputError(f"a checkpoint with {len(sums)} sums of an epoch, not {len(self._names)}; train again")
        if self._ranks.is_main:
            self._sums[: len(sums)] = sums

    def start(self) -> None:
        """Start the clock: speed is that of what follows, the sums go on."""
        self._started, self._waited, self._taken = time.perf_counter(), 0.0, 0

    def stop(self) -> None:
        """Stop the clock."""
        self._seconds = time.perf_counter() - self._started

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass batches on, and measure how long each is waited for."""
        waiting = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - waiting
            yield batch
            waiting = time.perf_counter()

    def add(self, step: Step) -> None:
        """Add a step; of one that was skipped, only that it was."""
        self._taken += 1
        skipped = [float(step.overflowed), float(step.is_bad)]
        values = [*step.losses, step.overlap, step.pixels, 1.0, step.grad_norm]
        self._sums += np.array([*(values if not any(skipped) else [0.0] * len(values)), *skipped]) / self._ranks.world

    def totals(self) -> list[float]:
        """Return the sums over all ranks, on every rank."""
        return [float(value) for value in self._ranks.sum(self._sums)]

    def means(self) -> dict[str, float]:
        """Return means over the steps that were not skipped, Dice of all pixels, and how many steps were skipped."""
        totals = dict(zip(self._names, self.totals(), strict=True))
        steps, pixels = max(totals["steps"], 1.0), totals["pixels"]
        return {
            **{name: totals[name] / steps for name in self._terms},
            "training_dice": 2 * totals["overlap"] / pixels if pixels else 1.0,
            "grad_norm": totals["grad_norm"] / steps,
            "overflowed_steps": totals["overflowed_steps"],
            "bad_steps": totals["bad_steps"],
        }

    def speed(self) -> dict[str, float]:
        """Return films/s over all ranks, the share of time that rank 0 waited for data, and most memory of a rank, MiB.

        On the CPU there is no GPU memory.
        """
        memory = np.array([peak_memory_mb(), self._ranks.gpu_memory_mb()])
        host, gpu = np.max(self._ranks.gather_array(memory), axis=0).tolist()
        films = self._taken * self._global_batch
        values = (films / self._seconds, self._waited / self._seconds, host, *([gpu] if gpu else []))
        return dict(zip(MEASURED, values, strict=False))

    def clear(self) -> None:
        """Begin the sums of the next epoch."""
        self._sums[:] = 0.0
