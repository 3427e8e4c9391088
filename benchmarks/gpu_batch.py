"""The largest batch that fits in a share of the GPU's memory."""

import gc
from collections.abc import Callable

import torch

from benchmarks.gpu_steps import Maker, Settings

MEMORY_SHARE = 0.7


def largest_batch(settings: Settings, make: Maker) -> int:
    """Return the largest batch that takes at most MEMORY_SHARE of the memory; on the CPU, the most that is asked for.

    Raises RuntimeError where not one image fits.
    """
    return fitting_batch(lambda batch: memory_share(settings, make, batch), MEMORY_SHARE, settings.most_batch)


def memory_share(settings: Settings, make: Maker, batch: int) -> float:
    """Return the share of the GPU's memory that two steps of a batch take; infinite where they do not fit."""
    if settings.device == "cpu":
        return 0.0
    forget()
    try:
        steps = make(settings, batch)
        for _ in range(2):  # Adam makes its state in the first
            steps.take_synthetic()
        return torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    except torch.OutOfMemoryError:
        return float("inf")


def forget() -> None:
    """Give memory back that nothing holds any more, and begin its peaks anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def fitting_batch(share: Callable[[int], float], limit: float, most: int) -> int:
    """Return the largest batch, from 1 to `most`, whose share of memory is at most `limit`, to a sixteenth.

    A straight line through the first two leads near it, halving from there on. `share` rises with the batch. Raises
    RuntimeError where not one image fits.
    """
    one = share(1)
    if one > limit:
        raise RuntimeError(f"one image takes {one:.0%} of the GPU's memory, more than {limit:.0%}")
    fits, too_many = 1, most + 1
    slope = share(2) - one if most > 1 else 0.0
    candidate = most if slope <= 0 else max(2, min(most, 1 + int((limit - one) / slope)))
    while too_many - fits > max(1, fits // 16):
        if share(candidate) <= limit:
            fits = candidate
        else:
            too_many = candidate
        candidate = (fits + too_many) // 2
    return fits
