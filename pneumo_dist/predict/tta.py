"""Test-time augmentation: average the predictions for a film at several scales and flipped."""

import torch
import torch.nn.functional as F

from pneumo_dist.config.ensemble import TtaConfig
from pneumo_dist.network.build import split_outputs
from pneumo_dist.ranks.precision import Resolved, autocast

UNIT = 32


def scaled_side(side: int, scale: float) -> int:
    """Return the multiple of 32 pixels nearest to a scaled side, at least 32."""
    return max(round(side * scale / UNIT), 1) * UNIT


@torch.inference_mode()
def mean_view(
    model: torch.nn.Module, images: torch.Tensor, tta: TtaConfig, amp: Resolved
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the probabilities averaged over views: float32 (n, 1, h, w), and class probabilities (n,) if predicted.

    `images` are float32 (n, channels, h, w) with h = w. Maps of other scales are resized linearly to the images' size.
    """
    side = images.shape[-1]
    total = images.new_zeros(images.shape[0], 1, side, side)
    classes: list[torch.Tensor] = []
    views = [(scale, is_flipped) for scale in tta.scales for is_flipped in ((False, True) if tta.hflip else (False,))]
    for scale, is_flipped in views:
        view = _resized(images, scaled_side(side, scale))
        with autocast(amp, images.device):
            logits, class_logits = split_outputs(model(view.flip(-1) if is_flipped else view))
        probabilities = torch.sigmoid(logits.float())
        total += _resized(probabilities.flip(-1) if is_flipped else probabilities, side)
        if class_logits is not None:
            classes.append(torch.sigmoid(class_logits.float()).squeeze(1))
    return total / len(views), torch.stack(classes).mean(0) if classes else None


def _resized(maps: torch.Tensor, side: int) -> torch.Tensor:
    if maps.shape[-1] == side:
        return maps
    return F.interpolate(maps, (side, side), mode="bilinear", antialias=side < maps.shape[-1])
