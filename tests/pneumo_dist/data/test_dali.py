"""The DALI graph on the CPU gives the films of the torch loader, in the form that the network expects."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from dali_films import FIRST_PLACE, RECIPE, every_request, one_batch
from images import decode

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.data import buffers
from pneumo_dist.data.augment import Parameters
from pneumo_dist.data.elastic import InputElastic
from pneumo_dist.data.films import Batch, FilmReader, FilmRequest, InputSpec
from pneumo_dist.data.geometry import GridSteps, Lens, Stored, matrix
from pneumo_dist.data.resample import BORDERS, NOISE_LEVEL, noise_window
from pneumo_dist.data.torch_loader import Films, torch_batches
from shards.dataset.table import Shards
from shards.errors import InputError

dali = pytest.importorskip("pneumo_dist.data.dali")

PLAIN = DataConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
KINDS = ("elastic", "grid", "optical")


def recipe(kind: str | None, **changes: Any) -> AugmentConfig:
    """Return the whole recipe with one kind of distortion, or with all three."""
    out = {} if kind is None else {other: None for other in KINDS if other != kind}
    return AugmentConfig.model_validate({**RECIPE, "distortion": {"p": 0.7, **out}, **changes})


def reader_of(
    shards: Shards, augment: AugmentConfig | None, size: int = 96, channels: int = 1, **data: Any
) -> FilmReader:
    input_spec = InputSpec(size, channels, PLAIN.model_copy(update=data))
    return FilmReader(shards, input_spec, with_mask=True, augment=augment, seed=11)


def assert_same_films(reader: FilmReader, requests: list[FilmRequest]) -> None:
    """Check that films differ by less than two grey levels on average, and that masks share 99 % of their union."""
    batch = one_batch(reader, requests)
    np.testing.assert_array_equal(batch.indices, [request.index for request in requests])
    shared = united = 0
    for request, image, mask in zip(requests, batch.images, batch.masks, strict=True):
        expected, label, row = Films(reader)[request]
        if reader.input_spec.data.channels_last:
            expected = expected.permute(2, 0, 1)
        assert row == request.index
        assert image.shape == expected.shape and mask.shape == label.shape
        assert float((image - expected).abs().mean()) * 255 < 2
        shared, united = shared + int((mask * label).sum()), united + int(((mask + label) > 0).sum())
    assert united > 50 * len(requests)
    assert shared / united > 0.99


@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("kind", [*KINDS, None])
def test_graph_gives_the_films_of_the_torch_loader(films: Shards, kind: str | None, border: str, size: int) -> None:
    reader = reader_of(films, recipe(kind, border=border), size)
    requests = every_request(films, 3)
    drawn = [reader.parameters(request) for request in requests]
    assert len({type(p.geometry.warp) for p in drawn}) == (2 if kind else 4)
    assert any(p.clahe for p in drawn) and any(p.noise_sigma for p in drawn) and any(p.gamma != 1 for p in drawn)
    assert_same_films(reader, requests)


# At 160 px elastic films have finer maps than the other films of a batch.
@pytest.mark.parametrize("size", [96, 160])
def test_graph_gives_the_films_of_the_torch_loader_in_the_first_places_forms(films: Shards, size: int) -> None:
    reader = reader_of(films, AugmentConfig.model_validate(FIRST_PLACE), size)
    requests = every_request(films, 6)
    drawn = [reader.parameters(request) for request in requests]
    assert {type(p.geometry.warp) for p in drawn} == {InputElastic, GridSteps, Lens, type(None)}
    assert any(p.mean_offset for p in drawn) and any(p.gamma != 1 for p in drawn)
    assert_same_films(reader, requests)


def test_graph_gives_the_crops_of_the_torch_loader(films: Shards) -> None:
    augment = AugmentConfig.model_validate({**FIRST_PLACE, "random_resized_crop": {"p": 0.5}})
    assert_same_films(replace(reader_of(films, augment, 64), crop_of=192), every_request(films, 6))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_and_their_order_change_nothing(films: Shards, channels: int, channels_last: bool) -> None:
    data = {"channels_last": channels_last, "mean": (0.4, 0.5, 0.6), "std": (0.9, 1.0, 1.1)}
    assert_same_films(reader_of(films, recipe(None), 64, channels, **data), every_request(films, 1))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size", [64, 96])
def test_films_of_any_shape_at_their_own_size_are_the_same_too(jpeg_films: Shards, border: str, size: int) -> None:
    assert_same_films(reader_of(jpeg_films, recipe(None, border=border), size), every_request(jpeg_films, 6))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size", [128, 224])
def test_real_films_are_the_same_too(real_films: Shards, border: str, size: int) -> None:
    assert len(real_films) == 10
    assert_same_films(reader_of(real_films, recipe(None, border=border), size), every_request(real_films, 3))


@pytest.mark.parametrize("tiles", [1, 5, 8])
def test_clahe_is_the_same_whether_its_tiles_divide_the_film_or_not(films: Shards, tiles: int) -> None:
    only = {"hflip": 0, "shift_scale_rotate": {"p": 0}, "tone": {"p": 0}}
    with_clahe = AugmentConfig.model_validate({**only, "clahe": {"p": 1, "clip": 3, "tiles": tiles}})
    requests = every_request(films, 1)
    assert_same_films(reader_of(films, with_clahe), requests)
    plain = one_batch(reader_of(films, None), requests).images
    assert float((one_batch(reader_of(films, with_clahe), requests).images - plain).abs().mean()) * 255 > 2


# -- against the definition


@pytest.mark.parametrize("brightness_by", ["range", "mean"])
def test_grey_values_are_clip_of_gain_and_offset_then_gamma_then_noise(films: Shards, brightness_by: str) -> None:
    tone = {"p": 0.9, "brightness_by": brightness_by}
    augment = AugmentConfig.model_validate(
        {"hflip": 0, "shift_scale_rotate": {"p": 0}, "tone": tone, "noise": {"p": 0.5}}
    )
    reader, requests = reader_of(films, augment), every_request(films, 4)
    batch = one_batch(reader, requests)
    for request, image in zip(requests, batch.images[:, 0].numpy(), strict=True):
        drawn = reader.parameters(request)
        stored = decode(films.read(request.index, "image")) / 255
        offset = drawn.offset + drawn.mean_offset * stored.mean()
        value = np.clip(stored * drawn.gain + offset, 0, 1) ** drawn.gamma
        value = np.clip(value + drawn.noise_sigma * noise_window(drawn, 96) / NOISE_LEVEL, 0, 1)
        # Bytes are rounded after each of the three.
        assert np.abs(image - value).max() * 255 < 2.6
        assert np.abs(image - value).mean() * 255 < 0.6


@pytest.mark.parametrize("loader", ["dali", "torch"])
def test_brightness_adds_a_share_of_the_stored_films_mean_whatever_of_it_is_seen(films: Shards, loader: str) -> None:
    moved = {"hflip": 0, "random_resized_crop": {"p": 1, "area": [0.1, 0.2]}}
    tone = {"p": 1, "contrast": None, "gamma": None, "brightness": 0.5, "brightness_by": "mean"}
    bright = reader_of(films, AugmentConfig.model_validate({**moved, "tone": tone}), 64)
    plain = reader_of(films, AugmentConfig.model_validate({**moved, "tone": {"p": 0}}), 64)
    requests = [FilmRequest(row, epoch, 0) for row in range(4) for epoch in range(3)]
    seen = [255 * batch_of(loader, reader, requests).images[:, 0].numpy() for reader in (bright, plain)]
    for request, image, before in zip(requests, *seen, strict=True):
        shift = bright.parameters(request).mean_offset * decode(films.read(request.index, "image")).mean()
        assert abs(shift) > 1e-3
        # One loader rounds, the other truncates.
        assert np.abs(image - np.clip(before + shift, 0, 255)).max() <= 1.01


def test_geometry_is_that_of_the_drawn_matrix(films: Shards) -> None:
    augment = AugmentConfig.model_validate({**RECIPE, "clahe": {"p": 0}, "tone": {"p": 0}, "noise": {"p": 0}})
    reader, requests = reader_of(films, augment, 64), every_request(films, 3)
    batch = one_batch(reader, requests)
    shared = united = 0
    for request, image, mask in zip(requests, batch.images, batch.masks, strict=True):
        parameters = reader.parameters(request)
        expected = warped(decode(films.read(request.index, "image")), parameters, 64, cv2.INTER_LINEAR)
        assert np.abs(255 * image[0].numpy() - expected).mean() < 1
        label = warped(decode(films.read(request.index, "mask")), parameters, 64, cv2.INTER_NEAREST) > 127
        seen = mask[0].numpy() > 0.5
        shared, united = shared + int((label & seen).sum()), united + int((label | seen).sum())
    assert united > 1000
    assert shared / united > 0.99


def warped(image: npt.NDArray[np.uint8], parameters: Parameters, size: int, how: int) -> npt.NDArray[np.float64]:
    """Resample with OpenCV, whose coordinates count from the first pixel's centre."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    whole = np.vstack([matrix(parameters.geometry, size, Stored(len(image))), [0, 0, 1]])
    centred = (np.linalg.inv(half) @ whole @ half)[:2]
    flags = how | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image.astype(np.float32), centred, (size, size), flags=flags), np.float64)


# -- the network's input


@pytest.mark.parametrize("loader", ["dali", "torch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_takes_mean_and_deviation_of_each_channel(films: Shards, channels: int, loader: str) -> None:
    data: dict[str, Any] = {"mean": (0.1, 0.4, 0.5), "std": (0.2, 0.25, 0.5)}
    images = batch_of(loader, reader_of(films, None, channels=channels, **data)).images
    plain = batch_of(loader, reader_of(films, None)).images
    assert images.shape == (2, channels, 96, 96)
    for channel, (mean, deviation) in enumerate([(0.1, 0.2), (0.4, 0.25), (0.5, 0.5)][:channels]):
        torch.testing.assert_close(images[:, channel], (plain[:, 0] - mean) / deviation, atol=1e-5, rtol=1e-5)


def batch_of(loader: str, reader: FilmReader, requests: list[FilmRequest] | None = None) -> Batch:
    requests = requests or [FilmRequest(0), FilmRequest(5)]
    if loader == "dali":
        return one_batch(reader, requests)
    (batch,) = torch_batches(reader, [requests])
    return batch


@pytest.mark.parametrize("loader", ["dali", "torch"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_film_at_its_stored_size_passes_unchanged(films: Shards, loader: str, with_mask: bool) -> None:
    reader = reader_of(films, None)
    batch = batch_of(loader, FilmReader(films, reader.input_spec, with_mask))
    assert batch.images.dtype == torch.float32 and batch.masks.dtype == torch.uint8
    for position, row in enumerate((0, 5)):
        np.testing.assert_allclose(255 * batch.images[position, 0].numpy(), decode(films.read(row, "image")), atol=0.01)
        if with_mask:
            np.testing.assert_array_equal(batch.masks[position, 0].numpy(), decode(films.read(row, "mask")) // 255)
    assert batch.masks.shape == (2, 1, 96, 96) if with_mask else batch.masks.numel() == 0


@pytest.mark.parametrize("loader", ["dali", "torch"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_images_have_the_requested_memory_format(films: Shards, loader: str, channels_last: bool) -> None:
    images = batch_of(loader, reader_of(films, None, channels=3, channels_last=channels_last)).images
    assert images.shape == (2, 3, 96, 96)
    assert images.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_batches_keep_their_values_while_later_ones_are_prepared(films: Shards) -> None:
    reader = reader_of(films, recipe(None))
    requests = every_request(films, 2)
    listed = [requests[start : start + 3] for start in range(0, len(requests), 3)]
    kept = [(batch, batch.images.clone(), batch.masks.clone()) for batch in dali.dali_batches(reader, listed, 3)]
    assert len(kept) == len(listed)
    for batch, images, masks in kept:
        assert torch.equal(batch.images, images) and torch.equal(batch.masks, masks)
        assert float(images.min()) >= 0 and float(images.max()) <= 1
        assert set(masks.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("data", [{"threads": 2}, {"prefetch": 1}, {"prefetch": 5}])
def test_threads_and_prefetch_change_no_bit(films: Shards, data: dict[str, int]) -> None:
    requests = every_request(films, 1)
    listed = [requests[:4], requests[4:8], requests[8:]]
    one = list(dali.dali_batches(reader_of(films, recipe(None)), listed, 4))
    other = list(dali.dali_batches(reader_of(films, recipe(None), **data), listed, 4))
    for left, right in zip(one, other, strict=True):
        assert torch.equal(left.images, right.images) and torch.equal(left.masks, right.masks)


# -- bytes with the right CRC32 that are not an image


@pytest.mark.parametrize(
    "change",
    [
        lambda content: bytes(len(content)),
        lambda content: content[: len(content) // 2],
        lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
        lambda content: content[:8],
    ],
    ids=["zeros", "first half", "second half zeros", "signature alone"],
)
def test_film_that_the_graph_cannot_decode_is_named(
    rewritten: Callable[[int, str, Callable[[bytes], bytes]], Shards], change: Callable[[bytes], bytes]
) -> None:
    shards = rewritten(7, "image", change)
    key, shard = str(shards.column("key")[7]), str(shards.column("shard")[7])
    listed = [[FilmRequest(row, 2, 10 + row)] for row in range(len(shards))]
    with pytest.raises(InputError) as caught:
        list(dali.dali_batches(reader_of(shards, recipe(None)), listed, 1))
    for part in (key, shard, "epoch 2", "step 17"):
        assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# -- memory


def test_a_run_of_batches_needs_few_buffers(films: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped: list[int] = []
    allocate = buffers._mapped

    def counted(size: int) -> Any:
        mapped.append(size)
        return allocate(size)

    monkeypatch.setattr(buffers, "_mapped", counted)
    requests = every_request(films, 2)
    for batch in dali.dali_batches(reader_of(films, recipe(None)), [requests[:3]] * 9, 3):
        assert batch.images.numel()
    assert len(mapped) <= 6, "two each of images and masks are enough: one in use while the next is filled"
