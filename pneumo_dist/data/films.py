"""Requests for films, the reader that answers them, and the batches that every loader yields. Imports no torch."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.data.augment import IDENTITY, Parameters, cropped, draw
from pneumo_dist.data.geometry import Stored
from pneumo_dist.data.plan import Indices
from pneumo_dist.data.resample import Image
from pneumo_dist.maps.labels import SoftLabels
from pneumo_dist.ranks.cpus import allowed_cpus, loader_threads, ranks_here
from shards.dataset.table import Shards
from shards.dataset.tar import CorruptSample
from shards.errors import InputError

if TYPE_CHECKING:
    import torch

Encoded = npt.NDArray[np.uint8]

# Resampled at any point and with any border, one black pixel gives an empty mask, as the stored mask would.
EMPTY_MASK: Encoded = np.asarray(cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1], np.uint8)
EMPTY_MASK.flags.writeable = False


@dataclass(frozen=True)
class Batch:
    """Decoded films.

    `images` (n, channels, size, size) are normalised and have the type `data.image_dtype`. `masks` are uint8
    (n, 1, size, size) of 0 and 1, or empty; of a reader with targets, they are levels of 0 to 255. `indices` are table
    rows; if there are fewer rows than images, the last images only fill the batch.
    """

    images: "torch.Tensor"
    masks: "torch.Tensor"
    indices: Indices


@dataclass(frozen=True)
class InputSpec:
    """The network's input: side in pixels, channels, normalisation and device (None for the CPU)."""

    size: int
    channels: int
    data: DataConfig
    device_id: int | None = None

    @property
    def threads(self) -> int:
        """Number of threads or workers of this rank's loader."""
        return loader_threads(self.data.threads, allowed_cpus(), ranks_here(os.environ))


@dataclass(frozen=True)
class FilmRequest:
    """A request for one film: its table row and, in training, its epoch and optimizer step."""

    index: int
    epoch: int | None = None
    step: int | None = None

    def __str__(self) -> str:
        return "not in training" if self.epoch is None else f"epoch {self.epoch}, step {self.step}"


@dataclass(frozen=True)
class FilmReader:
    """Reads films from shards and draws their augmentation; without `augment`, films are only resized.

    With `crop_of`, an augmented film is a crop of the input's size from the film at this side, in pixels. With
    `has_targets`, loaders yield the targets of targets.py instead of masks, also for films without labels; `maps` are
    the pseudo-labels of those.
    """

    shards: Shards
    input_spec: InputSpec
    with_mask: bool
    augment: AugmentConfig | None = None
    seed: int = 0
    crop_of: int | None = None
    has_targets: bool = False
    maps: SoftLabels | None = None

    @property
    def border(self) -> str:
        """Content beyond a film's edges. Without augmentation the padding lies there."""
        return self.augment.border if self.augment else "constant"

    @property
    def members(self) -> tuple[str, ...]:
        """Names of a film's members to read: `image`, and `mask` if requested."""
        return ("image", "mask") if self.with_mask and not self.has_targets else ("image",)

    def is_labelled(self, index: int) -> bool:
        """Return whether the film in a row of the table has a mask."""
        return bool(self.shards.column("mask_size")[index] >= 0)

    def parameters(self, request: FilmRequest) -> Parameters:
        """Return the augmentation of a film in its epoch."""
        if self.augment is None or request.epoch is None:
            return IDENTITY
        drawn = draw(self.augment, self.seed, request.epoch, self.shards.text(request.index, "key"))
        return drawn if self.crop_of is None else cropped(drawn, self.input_spec.size, self.crop_of)

    def stored(self, request: FilmRequest) -> Stored:
        """Return the position of a stored film in its square."""
        grid = self.shards.grid(request.index)
        return Stored(grid.stored, grid.origin)

    def read(self, request: FilmRequest) -> tuple[Encoded, ...]:
        """Return the encoded members. Raises as `read_member`."""
        return tuple(self.read_member(request, member) for member in self.members)

    def read_member(self, request: FilmRequest, member: str) -> Encoded:
        """Return an encoded member. The mask of a film without pneumothorax is not read: it is one black pixel.

        Raises CorruptSample, naming shard, key, epoch and step, if its CRC32 does not match.
        """
        if member == "mask" and self.shards.column("mask_area")[request.index] == 0:
            return EMPTY_MASK
        try:
            return np.frombuffer(self.shards.read(request.index, member), np.uint8)
        except CorruptSample as error:
            raise CorruptSample(f"{error} ({request})") from None

    def decode(self, content: Encoded) -> Image | None:
        """Decode a member to grey values (height, width); return None for bytes that are not an image."""
        image = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE) if content.size else None
        return None if image is None else np.asarray(image, np.uint8)

    def undecodable(self, request: FilmRequest) -> InputError:
        """Return the error for a film whose CRC32 matches but whose bytes are not an image."""
        shard, key = (self.shards.text(request.index, name) for name in ("shard", "key"))
        return InputError(f"{self.shards.folder / shard}: {key} cannot be decoded ({request}); build the shards again")
