"""Find the largest batch that fits in a share of the GPU's memory."""

import gc
from collections.abc import Callable

import torch

from benchmarks.gpu_steps import Maker, Settings

MEMORY_SHARE = 0.7


def largest_batch(settings: Settings, make: Maker) -> int:
    """Return the largest batch that needs at most MEMORY_SHARE of the memory; on the CPU, the maximum batch.

    Raises RuntimeError if not even one image fits.
    """
    return fitting_batch(lambda batch: memory_share(settings, make, batch), MEMORY_SHARE, settings.counts.most_batch)


def memory_share(settings: Settings, make: Maker, batch: int) -> float:
    """Return the share of the GPU's memory that two steps need; infinite if they run out of memory."""
    if settings.device == "cpu":
        return 0.0
    release_memory()
    try:
        steps = make(settings, batch)
        for _ in range(2):  # the first creates Adam's state
            steps.take_synthetic()
        return torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    except torch.OutOfMemoryError:
        return float("inf")


def release_memory() -> None:
    """Release unused GPU memory and reset the peak statistics."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def fitting_batch(share: Callable[[int], float], limit: float, most: int) -> int:
    """Return the largest batch, from 1 to `most`, whose share of memory is at most `limit`, to a sixteenth.

    The search starts from a linear extrapolation of batches 1 and 2, and bisects from there. `share` must increase with
    the batch. Raises RuntimeError if not even one image fits.
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
