"""The torch loader: torch's DataLoader, with OpenCV for geometry and albumentations for grey values.

It serves machines without DALI, and is the reference for the tests of the DALI graph.
"""

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.data.augment import Parameters
from pneumo_dist.data.films import Batch, FilmReader, FilmRequest
from pneumo_dist.data.geometry import coarse_map, matrix
from pneumo_dist.data.normalise import normalised
from pneumo_dist.data.resample import Image, add_noise, by_coarse_map, by_matrix
from pneumo_dist.data.servers import start_server
from pneumo_dist.data.targets import target
from pneumo_dist.ranks.processes import become_worker, end_between_calls, kill_workers_at_exit
from shards.errors import InputError

# Set before the import, which would otherwise check online for a newer version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations.augmentations.pixel.functional as tone

Sample = tuple[torch.Tensor, torch.Tensor, int]
Collated = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Films(Dataset[Sample]):
    """Dataset of films: image (channels, size, size), or (size, size, channels) for channels last; mask; table row."""

    def __init__(self, reader: FilmReader) -> None:
        self.reader = reader

    def __getitem__(self, request: FilmRequest) -> Sample:
        """Read, decode and augment one film. Raises CorruptSample or InputError, naming film, epoch and step."""
        reader, parameters = self.reader, self.reader.parameters(request)
        stored = decoded(reader, request)
        image, *masks = resampled(stored, reader, request, parameters)
        if reader.augment is not None:
            image = shade(image, stored[0], parameters, reader.augment)
        data = reader.input_spec.data
        pixels = torch.from_numpy(normalised(image, reader.input_spec)).to(getattr(torch, data.image_dtype))
        mask = torch.empty(0, dtype=torch.uint8)
        if reader.has_targets:
            mask = torch.from_numpy(target(reader, request, parameters))[None]
        elif masks:
            mask = torch.from_numpy((masks[0] > 127).astype(np.uint8))[None]
        return pixels if data.channels_last else pixels.permute(2, 0, 1).contiguous(), mask, request.index


def decoded(reader: FilmReader, request: FilmRequest) -> tuple[Image, ...]:
    """Return a stored film and, if requested, its mask (0 and 255)."""
    images = [reader.decode(content) for content in reader.read(request)]
    found = tuple(image for image in images if image is not None)
    if len(found) < len(images):
        raise reader.undecodable(request)
    return found


def resampled(
    images: tuple[Image, ...], reader: FilmReader, request: FilmRequest, parameters: Parameters
) -> tuple[Image, ...]:
    """Resample a stored film and, if given, its mask to uint8 (size, size)."""
    geometry, stored, size = parameters.geometry, reader.stored(request), reader.input_spec.size
    if geometry.warp is not None:
        return by_coarse_map(images, coarse_map(geometry, size, stored), size, reader.border)
    return by_matrix(images, matrix(geometry, size, stored), size, reader.border)


def shade(image: Image, stored: Image, parameters: Parameters, augment: AugmentConfig) -> Image:
    """Apply CLAHE, tone and noise to an image (size, size); `stored` is the film that it was resampled from."""
    if parameters.clahe:
        tiles = augment.clahe.tiles
        image = tone.clahe(image, clip_limit=augment.clahe.clip, tile_grid_size=(tiles, tiles))
    offset = parameters.offset * 255.0
    if parameters.mean_offset != 0.0:
        offset = parameters.mean_offset * cv2.mean(stored)[0]
    if parameters.gain != 1.0 or offset != 0.0:
        image = tone.multiply_add(image, parameters.gain, offset, inplace=False)
    if parameters.gamma != 1.0:
        image = tone.gamma_transform(image, gamma=parameters.gamma)
    return add_noise(image, parameters)


def torch_batches(reader: FilmReader, batches: Iterable[list[FilmRequest]]) -> Iterator[Batch]:
    """Yield the requested batches; `data.threads` worker processes prefetch them."""
    data = reader.input_spec.data
    kill_workers_at_exit()
    loader: Any = iter(
        DataLoader(
            Films(reader),
            batch_sampler=batches,
            num_workers=reader.input_spec.threads,
            prefetch_factor=data.prefetch,
            worker_init_fn=_begin,
            multiprocessing_context=start_server("torch"),
            pin_memory=reader.input_spec.device_id is not None,
        )
    )
    try:
        for images, masks, rows in _with_short_errors(loader):
            # Samples with the channels last stack to a batch in that memory format.
            yield Batch(images.permute(0, 3, 1, 2) if data.channels_last else images, masks, np.asarray(rows, np.int64))
    finally:
        # If the garbage collector did this, in a cycle with an error, it would close the workers' queues first and then
        # time out twice for each worker, after five seconds each.
        loader._shutdown_workers()


def _begin(number: int) -> None:
    become_worker(number)
    end_between_calls()
    cv2.setNumThreads(0)


def _with_short_errors(batches: Iterable[Collated]) -> Iterator[Collated]:
    """Pass batches on; reduce a worker's error, which torch wraps in a traceback, to its last line."""
    try:
        yield from batches
    except RuntimeError as error:
        ended = re.search(r"DataLoader worker .*?(killed by signal: \w+|exited unexpectedly)", str(error))
        if ended is None:
            raise
        raise InputError(
            f"a loader's worker ended ({ended[1]}); is /dev/shm full (df -h /dev/shm; containers: --shm-size), or the "
            "memory? fewer data.threads need less of both"
        ) from None
    except InputError as error:
        last = str(error).strip().splitlines()[-1]
        raise type(error)(last.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")) from None
