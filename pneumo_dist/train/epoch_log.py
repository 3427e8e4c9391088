"""Figures of an epoch: sums over its steps, and their speed."""

import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pneumo_dist.data.films import Batch
from pneumo_dist.ranks.processes import peak_memory_mb
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.train.step import Step
from shards.errors import InputError

# Sums besides the losses, in the order of a checkpoint.
COUNTED = ("overlap", "pixels", "steps", "grad_norm", "overflowed_steps", "bad_steps")
# Keys of `speed`. They depend on the machine and differ between runs that compute the same.
MEASURED = ("images_per_s", "data_wait_share", "peak_memory_mb", "peak_gpu_memory_mb")


class EpochLog:
    """Sums of an epoch on one rank, and its clock.

    Each rank adds its values divided by the number of ranks. The total over all ranks is then right even if a part of
    the epoch was trained by a different number of ranks. `terms` names the losses of a step, and `agreement` the Dice
    of the predictions at 0.5: that of all pixels, or of all films, which is their F1.
    """

    def __init__(self, terms: Sequence[str], global_batch: int, ranks: Ranks, agreement: str = "training_dice") -> None:
        self._agreement = agreement
        self._names = (*terms, *COUNTED)
        self._terms, self._global_batch, self._ranks = terms, global_batch, ranks
        self._sums = np.zeros(len(self._names))
        self._seconds = self._waited = 0.0
        self._taken = 0

    def restore(self, sums: Sequence[float]) -> None:
        """Load the result of `totals` on rank 0. Raises InputError if it has too many values."""
        if len(sums) > len(self._names):
            raise InputError(f"a checkpoint with {len(sums)} sums of an epoch, not {len(self._names)}; train again")
        if self._ranks.is_main:
            self._sums[: len(sums)] = sums

    def start(self) -> None:
        """Start the clock. Speed is measured from here; the sums continue."""
        self._started, self._waited, self._taken = time.perf_counter(), 0.0, 0

    def stop(self) -> None:
        """Stop the clock."""
        self._seconds = time.perf_counter() - self._started

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches and measure how long training waits for them."""
        waiting = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - waiting
            yield batch
            waiting = time.perf_counter()

    def add(self, step: Step) -> None:
        """Add a step. A skipped step only counts as skipped."""
        self._taken += 1
        skipped = [float(step.overflowed), float(step.is_bad)]
        values = [*step.losses, step.overlap, step.pixels, 1.0, step.grad_norm]
        self._sums += np.array([*(values if not any(skipped) else [0.0] * len(values)), *skipped]) / self._ranks.world

    def totals(self) -> list[float]:
        """Return the sums over all ranks, on every rank."""
        return [float(value) for value in self._ranks.sum(self._sums)]

    def means(self) -> dict[str, float]:
        """Return means over the steps that were not skipped, Dice over all pixels, and the number of skipped steps."""
        totals = dict(zip(self._names, self.totals(), strict=True))
        steps, pixels = max(totals["steps"], 1.0), totals["pixels"]
        return {
            **{name: totals[name] / steps for name in self._terms},
            self._agreement: 2 * totals["overlap"] / pixels if pixels else 1.0,
            "grad_norm": totals["grad_norm"] / steps,
            "overflowed_steps": totals["overflowed_steps"],
            "bad_steps": totals["bad_steps"],
        }

    def speed(self) -> dict[str, float]:
        """Return films/s over all ranks, the share of time that rank 0 waited for data, and the peak memory in MiB.

        GPU memory is left out on a CPU.
        """
        memory = np.array([peak_memory_mb(), self._ranks.gpu_memory_mb()])
        host, gpu = np.max(self._ranks.gather_array(memory), axis=0).tolist()
        films = self._taken * self._global_batch
        values = (films / self._seconds, self._waited / self._seconds, host, *([gpu] if gpu else []))
        return dict(zip(MEASURED, values, strict=False))

    def clear(self) -> None:
        """Reset the sums for the next epoch."""
        self._sums[:] = 0.0
