"""Test-time augmentation: the mean over flips and scales, against views computed one by one."""

import pytest
import torch
import torch.nn.functional as F

from pneumo_dist.config.ensemble import TtaConfig
from pneumo_dist.predict.tta import mean_view, scaled_side


class Ramp(torch.nn.Module):
    """Adds a ramp over the columns, so that flips matter, and counts the sides that it sees."""

    def __init__(self, has_head: bool) -> None:
        super().__init__()
        self.has_head = has_head
        self.sides: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        self.sides.append(images.shape[-1])
        logits = images + torch.linspace(-2, 2, images.shape[-1])
        return (logits, logits[:, :, 0, :1].flatten(1)) if self.has_head else logits


@pytest.mark.parametrize(
    ("side", "scale", "expected"), [(512, 1.0, 512), (512, 1.5, 768), (64, 0.25, 32), (96, 0.9, 96), (96, 1.2, 128)]
)
def test_scaled_side_is_the_nearest_multiple_of_32(side: int, scale: float, expected: int) -> None:
    assert scaled_side(side, scale) == expected


@pytest.mark.parametrize("has_head", [False, True])
@pytest.mark.parametrize(("scales", "hflip"), [((1.0,), False), ((1.0,), True), ((0.5, 1.0, 2.0), True)])
def test_mean_is_that_of_all_views(scales: tuple[float, ...], hflip: bool, has_head: bool) -> None:
    images, model = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)), Ramp(has_head)
    maps, classes = mean_view(model, images, TtaConfig(scales=scales, hflip=hflip), "float32")
    expected_maps, expected_classes = [], []
    for scale in scales:
        side = int(64 * scale)
        view = images if side == 64 else F.interpolate(images, (side, side), mode="bilinear", antialias=side < 64)
        for seen, is_flipped in ((view, False), (view.flip(-1), True))[: 1 + hflip]:
            logits = seen + torch.linspace(-2, 2, side)
            probabilities = torch.sigmoid(logits.flip(-1) if is_flipped else logits)
            if side != 64:
                probabilities = F.interpolate(probabilities, (64, 64), mode="bilinear", antialias=side > 64)
            expected_maps.append(probabilities)
            expected_classes.append(torch.sigmoid(logits[:, 0, 0, 0]))
    assert len(model.sides) == len(scales) * (1 + hflip)
    torch.testing.assert_close(maps, torch.stack(expected_maps).mean(0))
    assert (classes is None) == (not has_head)
    if classes is not None:
        torch.testing.assert_close(classes, torch.stack(expected_classes).mean(0))
