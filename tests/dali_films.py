"""Batches of the DALI graph, for tests on the CPU and on a GPU."""

from typing import Any

from pneumo_dist.data.films import Batch, FilmReader, FilmRequest
from shards.dataset.table import Shards

# All augmentations at high probabilities.
RECIPE: dict[str, Any] = {
    "hflip": 0.5,
    "shift_scale_rotate": {"p": 0.7, "shift": 0.0625, "scale": 0.1, "rotate": 45},
    "random_resized_crop": {"p": 0.5},
    "clahe": {"p": 0.3},
    "tone": {"p": 0.7, "contrast": 0.2, "gamma": [0.8, 1.2], "brightness": 0.2},
    "noise": {"p": 0.5},
}
# The first place's augmentation, in its own forms, at higher probabilities.
FIRST_PLACE: dict[str, Any] = {
    "border": "reflect_101",
    "hflip": 0.5,
    "shift_scale_rotate": {"p": 0.7, "shift": 0.0625, "scale": 0.1, "rotate": 45},
    "distortion": {"p": 0.8, "elastic": {"pixels": "input"}, "grid_open": True},
    "tone": {"p": 0.8, "gamma_exponent": "1/g", "brightness_by": "mean"},
}


def every_request(shards: Shards, epochs: int) -> list[FilmRequest]:
    """Return each film once in each epoch."""
    return [FilmRequest(row, epoch, 0) for epoch in range(epochs) for row in range(len(shards))]


def one_batch(reader: FilmReader, requests: list[FilmRequest]) -> Batch:
    """Return the films of these requests. DALI is imported only when this is called."""
    from pneumo_dist.data import dali

    (batch,) = dali.dali_batches(reader, [requests], len(requests))
    assert isinstance(batch, Batch)
    return batch
