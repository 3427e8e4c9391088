"""The DALI graph on each device gives the films of the torch loader, within the bounds of the CPU graph's tests."""

from typing import Any

import numpy as np
import pytest
import torch
from dali_films import FIRST_PLACE, RECIPE, every_request, one_batch

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.data.films import FilmReader, FilmRequest, InputSpec
from pneumo_dist.data.resample import BORDERS
from pneumo_dist.data.torch_loader import Films
from pneumo_dist.ranks.ranks import Ranks
from shards.dataset.table import Shards

dali = pytest.importorskip("pneumo_dist.data.dali")

PLAIN = DataConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), loader="dali")
DISTORTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "elastic": {"distortion": {"p": 0.7, "grid": None, "optical": None}},
    "all": {"distortion": {"p": 0.7}},
    "first place": {key: FIRST_PLACE[key] for key in ("distortion", "tone")},
}


def reader_of(shards: Shards, ranks: Ranks, size: int = 96, augment: AugmentConfig | None = None) -> FilmReader:
    input_spec = InputSpec(size, 1, PLAIN, ranks.device_id)
    return FilmReader(shards, input_spec, with_mask=True, augment=augment, seed=11)


@pytest.mark.parametrize("codec", ["png", "jpeg"])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("distortion", DISTORTIONS)
@pytest.mark.parametrize("size", [64, 96, 160])
def test_graph_gives_the_films_of_the_torch_loader(
    films: dict[str, Shards], ranks: Ranks, size: int, distortion: str, border: str, codec: str
) -> None:
    """Each film agrees within two grey levels on average, and all masks in 99 % of their union."""
    augment = AugmentConfig.model_validate({**RECIPE, **DISTORTIONS[distortion], "border": border})
    reader = reader_of(films[codec], ranks, size, augment)
    requests = every_request(films[codec], 2)
    batch = one_batch(reader, requests)
    assert batch.images.device.type == batch.masks.device.type == ranks.device.type
    shared = united = 0
    for request, image, mask in zip(requests, batch.images.cpu(), batch.masks.cpu(), strict=True):
        expected, label, _ = Films(reader)[request]
        assert image.shape == expected.shape and mask.shape == label.shape
        assert float((image - expected).abs().mean()) * 255 < 2
        shared, united = shared + int((mask * label).sum()), united + int(((mask + label) > 0).sum())
    assert united > 50 * len(requests)
    assert shared / united > 0.99


@pytest.mark.parametrize("codec", ["png", "jpeg"])
def test_film_without_augmentation_is_unchanged(films: dict[str, Shards], ranks: Ranks, codec: str) -> None:
    reader = reader_of(films[codec], ranks)
    requests = [FilmRequest(row) for row in range(len(films[codec]))]
    batch = one_batch(reader, requests)
    for request, image, mask in zip(requests, batch.images.cpu(), batch.masks.cpu(), strict=True):
        expected, label, _ = Films(reader)[request]
        # JPEG decoders may differ by a grey level. PNG decoders agree.
        assert float((image - expected).abs().max()) * 255 < (3 if codec == "jpeg" else 0.01)
        assert torch.equal(mask, label)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("image_dtype", ["float32", "float16"])
def test_batch_has_the_form_that_the_network_expects(
    films: dict[str, Shards], ranks: Ranks, channels_last: bool, image_dtype: str
) -> None:
    data = PLAIN.model_copy(update={"channels_last": channels_last, "image_dtype": image_dtype})
    reader = FilmReader(films["png"], InputSpec(64, 3, data, ranks.device_id), with_mask=True)
    positive = np.flatnonzero(films["png"].column("has_mask"))
    requests = [FilmRequest(int(row)) for row in positive[:3]]
    batch = one_batch(reader, requests)
    assert batch.images.shape == (3, 3, 64, 64) and batch.masks.shape == (3, 1, 64, 64)
    assert batch.images.dtype == getattr(torch, image_dtype) and batch.masks.dtype == torch.uint8
    expected = torch.channels_last if channels_last else torch.contiguous_format
    assert batch.images.is_contiguous(memory_format=expected)
    assert set(batch.masks.unique().tolist()) == {0, 1}
    without = one_batch(FilmReader(films["png"], reader.input_spec, with_mask=False), requests)
    assert torch.equal(without.images, batch.images) and without.masks.numel() == 0


def test_batches_keep_their_values_while_later_ones_are_loaded(films: dict[str, Shards], ranks: Ranks) -> None:
    """Also if the device still reads them when their last reference is dropped."""
    augment = AugmentConfig.model_validate({**RECIPE, **DISTORTIONS["all"]})
    reader = reader_of(films["png"], ranks, augment=augment)
    requests = every_request(films["png"], 4)
    listed = [requests[start : start + 4] for start in range(0, len(requests), 4)]
    kept = [(batch, batch.images.clone(), batch.masks.clone()) for batch in dali.dali_batches(reader, listed, 4)]
    assert all(torch.equal(batch.images, images) and torch.equal(batch.masks, masks) for batch, images, masks in kept)
    expected = [float(images.double().sum()) for _, images, _ in kept]
    busy = torch.randn(512, 512, device=ranks.device)
    sums = []
    for batch in dali.dali_batches(reader, listed, 4):
        for _ in range(20):
            busy = torch.tanh(busy @ busy)  # the device falls behind
        sums.append(batch.images.double().sum())
        del batch
    assert [float(value) for value in sums] == expected


def test_png_films_have_the_same_bits_every_time(films: dict[str, Shards], ranks: Ranks) -> None:
    augment = AugmentConfig.model_validate({**RECIPE, **DISTORTIONS["all"], "border": "reflect"})
    reader, requests = reader_of(films["png"], ranks, 64, augment), every_request(films["png"], 2)
    one, other = one_batch(reader, requests), one_batch(reader, requests)
    assert torch.equal(one.images, other.images) and torch.equal(one.masks, other.masks)
