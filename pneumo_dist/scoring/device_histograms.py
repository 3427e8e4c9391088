"""Histograms of probability maps on the device that computed them: the same integers as OpenCV's on the host.

`cv2.resize(INTER_LINEAR_EXACT)` computes in integers with coefficients of eight fractional bits (`interpolationLinear`
and `resize_bitExact` in OpenCV's modules/imgproc/src/resize.cpp), so that a device can repeat it to the bit.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.histograms import LEVELS
from shards.dataset.grid import content_box
from shards.dataset.table import LabelGrid

_ONE = 256  # 1.0 with eight fractional bits
# Most pixels are 0. Additions to one counter wait for each other, so that neighbours add to different ones.
_COPIES = 64


def device_histograms(p8: torch.Tensor, grid: LabelGrid, truth: Map | None) -> torch.Tensor:
    """Return the histograms of a map on its label grid, int64 (2, 256), on the map's device, without waiting for it.

    Args:
        p8: The map at network resolution, uint8 (size, size).
        grid: The film's label grid.
        truth: The label on that grid, uint8 of 0 and 1; None for a film without a pneumothorax.
    """
    levels = resized(p8, grid).reshape(-1)
    histograms = torch.zeros(2, LEVELS, dtype=torch.int64, device=p8.device)
    if truth is None:
        histograms[0] = _counts(levels, LEVELS)
        return histograms
    is_labelled = _on_device(truth, p8.device).reshape(-1).to(torch.int64)
    rest, labelled = _counts(is_labelled * LEVELS + levels, 2 * LEVELS).chunk(2)
    return torch.stack([rest + labelled, labelled])


def resized(p8: torch.Tensor, grid: LabelGrid) -> torch.Tensor:
    """Return the levels of `label_map`, int64 (height, width), for a map uint8 (size, size) on its device."""
    top, bottom, left, right = content_box(grid.padding, grid.stored, p8.shape[0])
    content = p8[top:bottom, left:right].to(torch.int64)
    if content.shape == (grid.height, grid.width):
        return content
    rows, columns = content.shape
    first, second, weight = _neighbours(columns, grid.width, p8.device)
    wide = content[:, first] * (_ONE - weight) + content[:, second] * weight
    first, second, weight = _neighbours(rows, grid.height, p8.device)
    weight = weight[:, None]
    tall = wide[first] * (_ONE - weight) + wide[second] * weight
    return (tall + _ONE * _ONE // 2) >> 16


@lru_cache(maxsize=256)
def _neighbours(source: int, target: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return for each target pixel of an axis its two source pixels and the second's weight, all int64 (target,)."""
    place = 1.0 / (target / source) * (np.arange(target) + 0.5) - 0.5
    whole = np.floor(place)
    is_between = (whole >= 0) & (whole < source - 1)
    weight = np.where(is_between, np.rint((place - whole) * _ONE), 0)
    first = whole.clip(0, source - 1)
    found = _on_device(np.stack([first, (first + 1).clip(max=source - 1), weight]).astype(np.int64), device)
    return found[0], found[1], found[2]


def _on_device(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copy an array to a device without waiting for it, as a copy from memory that is not pinned would."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _counts(values: torch.Tensor, size: int) -> torch.Tensor:
    """Return how often each of 0..size-1 occurs, int64 (size,). Sums of integers have no order, and nothing waits."""
    copies = torch.arange(len(values), device=values.device) % _COPIES
    counts = torch.zeros(_COPIES * size, dtype=torch.int64, device=values.device)
    counts.scatter_add_(0, copies * size + values, torch.ones_like(values))
    return counts.view(_COPIES, size).sum(0)
