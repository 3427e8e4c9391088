"""Turns grey films into the numbers that a network takes, without a loader."""

import numpy as np
import numpy.typing as npt
import torch

from pneumo_dist.data.augment import IDENTITY
from pneumo_dist.data.films import Batch, InputSpec
from pneumo_dist.data.geometry import Stored, matrix
from pneumo_dist.data.resample import Image, by_matrix


def normalised(image: Image, input_spec: InputSpec) -> npt.NDArray[np.float32]:
    """Return a grey image (size, size) with the mean and deviation of each channel: float32 (size, size, channels)."""
    channels, data = input_spec.channels, input_spec.data
    mean, std = (np.array(values[:channels], np.float32) * 255.0 for values in (data.mean, data.std))
    return np.asarray((image[..., None].astype(np.float32) - mean) / std, np.float32)


def single_batch(square: Image, input_spec: InputSpec) -> Batch:
    """Return a batch of one film, row 0, from its stored square image, uint8 (side, side).

    It is resampled and normalised as the torch loader does without augmentation.
    """
    size, data = input_spec.size, input_spec.data
    (image,) = by_matrix((square,), matrix(IDENTITY.geometry, size, Stored(len(square))), size, "constant")
    pixels = torch.from_numpy(normalised(image, input_spec)).to(getattr(torch, data.image_dtype))[None]
    images = pixels.permute(0, 3, 1, 2)
    return Batch(
        images if data.channels_last else images.contiguous(),
        torch.empty(0, dtype=torch.uint8),
        np.zeros(1, np.int64),
    )
