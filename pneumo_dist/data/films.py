"""What every loader takes and yields."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.data.augment import IDENTITY, Parameters, draw
from pneumo_dist.data.geometry import Stored
from pneumo_dist.data.plan import Indices
from shards.dataset.table import Shards
from shards.dataset.tar import CorruptSample
from shards.errors import InputError

Encoded = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """`images` of `data.image_dtype` (n, channels, size, size), normalised; `masks` uint8 (n, 1, size, size) of 0
    and 1, or empty; `indices` table rows: where there are fewer than images, the last images only fill the batch."""

    images: torch.Tensor
    masks: torch.Tensor
    indices: Indices


@dataclass(frozen=True)
class InputSpec:
    """What the network takes: side in pixels, channels, normalisation, device (None is the CPU)."""

    size: int
    channels: int
    data: DataConfig
    device_id: int | None = None


@dataclass(frozen=True)
class FilmRequest:
    """A film's place: table row, and the epoch and optimizer step of a training film."""

    index: int
    epoch: int | None = None
    step: int | None = None

    def __str__(self) -> str:
        return "not in training" if self.epoch is None else f"epoch {self.epoch}, step {self.step}"


@dataclass(frozen=True)
class FilmReader:
    """Where films come from and what is done to them; without `augment`, only what the network needs."""

    shards: Shards
    input_spec: InputSpec
    with_mask: bool
    augment: AugmentConfig | None = None
    seed: int = 0

    @property
    def border(self) -> str:
        """What lies beyond a film's edges; a film that is not augmented has its padding there."""
        return self.augment.border if self.augment else "constant"

    def parameters(self, request: FilmRequest) -> Parameters:
        """Return the augmentation of a film in its epoch."""
        if self.augment is None or request.epoch is None:
            return IDENTITY
        return draw(self.augment, self.seed, request.epoch, str(self.shards.column("key")[request.index]))

    def stored(self, request: FilmRequest) -> Stored:
        """Return how a film lies in its square."""
        grid = self.shards.grid(request.index)
        return Stored(grid.stored, grid.origin)

    def read(self, request: FilmRequest) -> tuple[Encoded, ...]:
        """Return the encoded image and, if asked for, the encoded mask.

        Raises CorruptSample, naming shard, key, epoch and step, for a member that fails its CRC32.
        """
        try:
            members = ("image", "mask") if self.with_mask else ("image",)
            return tuple(np.frombuffer(self.shards.read(request.index, member), np.uint8) for member in members)
        except CorruptSample as error:
            raise CorruptSample(f"{error} ({request})") from None

    def decode(self, content: Encoded) -> npt.NDArray[np.uint8] | None:
        """Return an encoded member as grey (height, width); None for bytes that are no image."""
        image = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE) if content.size else None
        return None if image is None else np.asarray(image, np.uint8)

    def undecodable(self, request: FilmRequest) -> InputError:
        """Return the error for a film whose bytes are those that were stored and yet are no image."""
        shard, key = (str(self.shards.column(name)[request.index]) for name in ("shard", "key"))
        return InputError(f"{self.shards.folder / shard}: {key} cannot be decoded ({request}); build the shards again")
