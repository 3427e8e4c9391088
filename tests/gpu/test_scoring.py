"""Histograms on each device are the integers that OpenCV gives on the host, in deterministic mode too."""

import numpy as np
import pytest
import torch

from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.scoring.device_histograms import device_histograms
from pneumo_dist.scoring.histograms import film_histograms
from pneumo_dist.scoring.masks import label_map
from shards.dataset.grid import fit_square
from shards.dataset.table import LabelGrid


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("size", "height", "width"), [(512, 1024, 1024), (1024, 1024, 1024), (768, 2991, 2430)])
def test_histograms_are_those_of_the_host(
    ranks: Ranks, size: int, height: int, width: int, deterministic: bool
) -> None:
    torch.use_deterministic_algorithms(deterministic)  # a fixture resets it
    chance = np.random.default_rng(size)
    p8 = (chance.integers(0, 256, (size, size)) * (chance.random((size, size)) < 0.3)).astype(np.uint8)
    grid = LabelGrid(height, width, fit_square(height, width, size), size)
    truth = (chance.random((height, width)) < 0.02).astype(np.uint8)
    for label in (truth, None):
        found = device_histograms(torch.from_numpy(p8).to(ranks.device), grid, label).cpu().numpy()
        expected = film_histograms(label_map(p8, grid), np.zeros_like(truth) if label is None else label)
        np.testing.assert_array_equal(found, expected)


def test_histograms_do_not_wait_for_the_gpu(gpu: Ranks) -> None:
    p8 = torch.zeros(64, 64, dtype=torch.uint8, device=gpu.device)
    grid = LabelGrid(100, 90, fit_square(100, 90, 64), 64)
    device_histograms(p8, grid, np.ones((100, 90), np.uint8))  # the first call copies indices
    torch.cuda.set_sync_debug_mode("error")
    try:
        device_histograms(p8, grid, np.ones((100, 90), np.uint8))
        device_histograms(p8, LabelGrid(64, 64, fit_square(64, 64, 64), 64), None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
