"""Films as public solutions load them, to compare with: torch's DataLoader, cv2.imdecode in colour, albumentations."""

from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from torch.utils.data import Dataset

from pneumo_dist.config.augment import AugmentConfig, Distortion, Elastic, Tone
from pneumo_dist.data.plan import Indices
from shards.dataset.table import Shards

# Recipe A's augmentation in this project's words; `recipe_a` has it in those of albumentations.
RECIPE_A = AugmentConfig(
    border="reflect_101",
    distortion=Distortion(p=0.3, elastic=Elastic(pixels="input"), grid_open=True),
    tone=Tone(gamma_exponent="1/g", brightness_by="mean"),
)


class ReferenceFilms(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """Some rows of a dataset: normalized image (3, size, size), mask (1, size, size) of 0 and 1, and the table row.

    `moves` are applied to the stored film, or to the resized one if `resize_first`.
    """

    def __init__(
        self, shards: Shards, rows: Indices, size: int, moves: Sequence[Any] = (), resize_first: bool = False
    ) -> None:
        self._shards, self._rows = shards, rows
        resize = A.Resize(size, size)
        steps = [resize, *moves] if resize_first else [*moves, resize]
        self._transform = A.Compose([*steps, A.Normalize(), ToTensorV2()])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        row = int(self._rows[index])
        image, mask = (np.frombuffer(self._shards.read(row, member), np.uint8) for member in ("image", "mask"))
        colour, grey = cv2.imdecode(image, cv2.IMREAD_COLOR), cv2.imdecode(mask, cv2.IMREAD_GRAYSCALE)
        film = self._transform(image=colour, mask=grey)
        return film["image"], (film["mask"] > 127).float()[None], row


def recipe_a() -> list[Any]:
    """Return the augmentation of recipe A (A. Anuar, 2019), in its order, for albumentations 2.0.8."""
    mirrored = {"border_mode": cv2.BORDER_REFLECT_101}
    tone = [
        A.RandomBrightnessContrast(brightness_limit=0, contrast_limit=0.2, p=1),
        A.RandomGamma(gamma_limit=(80, 120), p=1),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0, p=1),
    ]
    distortion = [
        A.ElasticTransform(alpha=120, sigma=6, p=1, **mirrored),
        A.GridDistortion(num_steps=5, distort_limit=0.3, p=1, **mirrored),
        A.OpticalDistortion(distort_limit=2, p=1, **mirrored),
    ]
    turn = A.Affine(
        scale=(0.9, 1.1), keep_ratio=True, translate_percent=(-0.0625, 0.0625), rotate=(-45, 45), p=0.5, **mirrored
    )
    return [A.HorizontalFlip(p=0.5), A.OneOf(tone, p=0.3), A.OneOf(distortion, p=0.3), turn]


def recipe_c() -> list[Any]:
    """Return the flip and the rotation of recipe C."""
    return [A.HorizontalFlip(p=0.5), A.Rotate(limit=10, p=0.5)]
