"""The synthetic loader: ready tensors, so that what is measured is computation alone."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from pneumo_dist.data.films import Batch, Slot, Source


def synthetic_batches(source: Source, batches: Iterable[list[Slot]]) -> Iterator[Batch]:
    """Yield one batch of noise with a disc as every mask, on its device, as often as `batches` lists one."""
    made: Batch | None = None
    for slots in batches:
        if made is None or len(made.images) != len(slots):
            made = _make(source, len(slots))
        yield Batch(made.images, made.masks, np.array([slot.index for slot in slots], np.int64))


def _make(source: Source, count: int) -> Batch:
    spec = source.spec
    device = torch.device("cpu") if spec.device_id is None else torch.device("cuda", spec.device_id)
    shape = (count, spec.channels, spec.size, spec.size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(getattr(torch, spec.data.image_dtype))
    if spec.data.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    axis = torch.linspace(-1.0, 1.0, spec.size)
    disc = (axis[:, None] ** 2 + axis[None, :] ** 2 < 0.1).byte()
    return Batch(images.to(device), disc.expand(count, 1, -1, -1).contiguous().to(device), np.zeros(count, np.int64))
