"""The DALI graph on each device: the films of the host loader, by the bounds of the CPU graph's own tests."""

from typing import Any

import numpy as np
import pytest
import torch
from dali_films import RECIPE, every_slot, one_batch

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.data.films import Input, Slot, Source
from pneumo_dist.data.torch_loader import Films
from pneumo_dist.ranks.ranks import Ranks
from shards.dataset.table import Shards

dali = pytest.importorskip("pneumo_dist.data.dali")

PLAIN = DataConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), loader="dali")
DISTORTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "elastic": {"distortion": {"p": 0.7, "grid": None, "optical": None}},
    "all": {"distortion": {"p": 0.7}},
}


def source_of(shards: Shards, ranks: Ranks, size: int = 96, augment: AugmentConfig | None = None) -> Source:
    spec = Input(size, 1, PLAIN, ranks.device_id)
    return Source(shards, spec, with_mask=True, augment=augment, seed=11)


@pytest.mark.parametrize("codec", ["png", "jpeg"])
@pytest.mark.parametrize("border", ["constant", "reflect"])
@pytest.mark.parametrize("distortion", DISTORTIONS)
@pytest.mark.parametrize("size", [64, 96, 160])
def test_graph_gives_the_films_of_the_host_loader(
    films: dict[str, Shards], ranks: Ranks, size: int, distortion: str, border: str, codec: str
) -> None:
    """Each film within two grey levels on average, and all masks together in 99 % of their union."""
    augment = AugmentConfig.model_validate({**RECIPE, **DISTORTIONS[distortion], "border": border})
    source = source_of(films[codec], ranks, size, augment)
    slots = every_slot(films[codec], 2)
    batch = one_batch(source, slots)
    assert batch.images.device.type == batch.masks.device.type == ranks.device.type
    shared = united = 0
    for slot, image, mask in zip(slots, batch.images.cpu(), batch.masks.cpu(), strict=True):
        expected, label, _ = Films(source)[slot]
        assert image.shape == expected.shape and mask.shape == label.shape
        assert float((image - expected).abs().mean()) * 255 < 2
        shared, united = shared + int((mask * label).sum()), united + int(((mask + label) > 0).sum())
    assert united > 50 * len(slots)
    assert shared / united > 0.99


@pytest.mark.parametrize("codec", ["png", "jpeg"])
def test_film_that_is_not_augmented_passes_unchanged(films: dict[str, Shards], ranks: Ranks, codec: str) -> None:
    source = source_of(films[codec], ranks)
    slots = [Slot(row) for row in range(len(films[codec]))]
    batch = one_batch(source, slots)
    for slot, image, mask in zip(slots, batch.images.cpu(), batch.masks.cpu(), strict=True):
        expected, label, _ = Films(source)[slot]
        # JPEG decoders differ by a grey level here and there; PNG has one meaning.
        assert float((image - expected).abs().max()) * 255 < (3 if codec == "jpeg" else 0.01)
        assert torch.equal(mask, label)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("image_dtype", ["float32", "float16"])
def test_batch_is_what_the_network_takes(
    films: dict[str, Shards], ranks: Ranks, channels_last: bool, image_dtype: str
) -> None:
    data = PLAIN.model_copy(update={"channels_last": channels_last, "image_dtype": image_dtype})
    source = Source(films["png"], Input(64, 3, data, ranks.device_id), with_mask=True)
    positive = np.flatnonzero(films["png"].column("has_mask"))
    slots = [Slot(int(row)) for row in positive[:3]]
    batch = one_batch(source, slots)
    assert batch.images.shape == (3, 3, 64, 64) and batch.masks.shape == (3, 1, 64, 64)
    assert batch.images.dtype == getattr(torch, image_dtype) and batch.masks.dtype == torch.uint8
    expected = torch.channels_last if channels_last else torch.contiguous_format
    assert batch.images.is_contiguous(memory_format=expected)
    assert set(batch.masks.unique().tolist()) == {0, 1}
    without = one_batch(Source(films["png"], source.spec, with_mask=False), slots)
    assert torch.equal(without.images, batch.images) and without.masks.numel() == 0


def test_batches_keep_their_values_while_later_ones_are_made(films: dict[str, Shards], ranks: Ranks) -> None:
    """Also where the device is still at work on them when the last reference to them goes."""
    augment = AugmentConfig.model_validate({**RECIPE, **DISTORTIONS["all"]})
    source = source_of(films["png"], ranks, augment=augment)
    slots = every_slot(films["png"], 4)
    listed = [slots[start : start + 4] for start in range(0, len(slots), 4)]
    kept = [(batch, batch.images.clone(), batch.masks.clone()) for batch in dali.dali_batches(source, listed, 4)]
    assert all(torch.equal(batch.images, images) and torch.equal(batch.masks, masks) for batch, images, masks in kept)
    expected = [float(images.double().sum()) for _, images, _ in kept]
    busy = torch.randn(512, 512, device=ranks.device)
    sums = []
    for batch in dali.dali_batches(source, listed, 4):
        for _ in range(20):
            busy = torch.tanh(busy @ busy)  # the device falls behind
        sums.append(batch.images.double().sum())
        del batch
    assert [float(value) for value in sums] == expected


def test_png_films_are_the_same_bits_every_time(films: dict[str, Shards], ranks: Ranks) -> None:
    augment = AugmentConfig.model_validate({**RECIPE, **DISTORTIONS["all"], "border": "reflect"})
    source, slots = source_of(films["png"], ranks, 64, augment), every_slot(films["png"], 2)
    one, other = one_batch(source, slots), one_batch(source, slots)
    assert torch.equal(one.images, other.images) and torch.equal(one.masks, other.masks)
