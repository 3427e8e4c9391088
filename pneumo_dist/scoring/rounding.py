"""Rounds averaged probabilities to the levels of stored predictions, on the device that computed them."""

import numpy as np
import torch

from pneumo_dist.scoring.arrays import Map


def to_levels(probability: torch.Tensor) -> torch.Tensor:
    """Round averaged probabilities once, from float (n, 1, h, w) in [0, 1] to levels 0..255, uint8 (n, h, w)."""
    scaled = probability.detach().float().mul(255).round().clamp(0, 255)
    return scaled.to(torch.uint8).squeeze(1)


def to_p8(probability: torch.Tensor) -> Map:
    """Return the result of `to_levels` on the host."""
    return np.asarray(to_levels(probability).cpu().numpy(), np.uint8)
