"""The synthetic loader: ready tensors, to measure computation alone."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from pneumo_dist.data.films import Batch, FilmReader, FilmRequest


def synthetic_batches(reader: FilmReader, batches: Iterable[list[FilmRequest]]) -> Iterator[Batch]:
    """Yield one batch of noise, with a disc as each mask, once for every requested batch."""
    batch: Batch | None = None
    for requests in batches:
        if batch is None or len(batch.images) != len(requests):
            batch = _make(reader, len(requests))
        yield Batch(batch.images, batch.masks, np.array([request.index for request in requests], np.int64))


def _make(reader: FilmReader, count: int) -> Batch:
    input_spec = reader.input_spec
    device = torch.device("cpu") if input_spec.device_id is None else torch.device("cuda", input_spec.device_id)
    shape = (count, input_spec.channels, input_spec.size, input_spec.size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(
        getattr(torch, input_spec.data.image_dtype)
    )
    if input_spec.data.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    axis = torch.linspace(-1.0, 1.0, input_spec.size)
    disc = (axis[:, None] ** 2 + axis[None, :] ** 2 < 0.1).byte() * (255 if reader.has_targets else 1)
    return Batch(images.to(device), disc.expand(count, 1, -1, -1).contiguous().to(device), np.zeros(count, np.int64))
