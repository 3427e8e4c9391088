"""Test-time augmentation: average the predictions for a film at several scales and flipped."""

from statistics import fmean

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
    model: torch.nn.Module, images: torch.Tensor, tta: TtaConfig, amp: Resolved, side: int
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the result of `mean_of_views`, without a graph for gradients."""
    return mean_of_views(model, images, tta, amp, side)


def mean_of_views(
    model: torch.nn.Module, images: torch.Tensor, tta: TtaConfig, amp: Resolved, side: int
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the probabilities averaged over views: float32 (n, 1, side, side), and class probabilities (n,) if any.

    A classifier has class probabilities and no map.
    `images` are float32 (n, channels, h, w) with h = w. The map of each view is resized linearly to `side`, once.
    """
    total: torch.Tensor | None = None
    classes: list[torch.Tensor] = []
    flips = (False, True) if tta.hflip else (False,)
    views = [(*view, is_flipped) for view in zip(tta.scales, _factors(tta), strict=True) for is_flipped in flips]
    for scale, factor, is_flipped in views:
        view = _resized(images, scaled_side(images.shape[-1], scale))
        with autocast(amp, images.device):
            logits, class_logits = split_outputs(model(view.flip(-1) if is_flipped else view))
        if logits is not None:
            total = images.new_zeros(images.shape[0], 1, side, side) if total is None else total
            probabilities = torch.sigmoid(logits.float())
            total.add_(_resized(probabilities.flip(-1) if is_flipped else probabilities, side), alpha=factor)
        if class_logits is not None:
            classes.append(factor * torch.sigmoid(class_logits.float()).squeeze(1))
    mean = None if total is None else total / len(views)
    return mean, torch.stack(classes).mean(0) if classes else None


def _factors(tta: TtaConfig) -> list[float]:
    """Return the factor of each scale in a plain mean over the views: its weight, divided by the mean weight."""
    weights = tta.scale_weights or (1.0,) * len(tta.scales)
    return [weight / fmean(weights) for weight in weights]


def _resized(maps: torch.Tensor, side: int) -> torch.Tensor:
    if maps.shape[-1] == side:
        return maps
    return F.interpolate(maps, (side, side), mode="bilinear", antialias=side < maps.shape[-1])
