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
    maps, classes = mean_view(model, images, TtaConfig(scales=scales, hflip=hflip), "float32", 64)
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


def views(model: Ramp, images: torch.Tensor, scale: float, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean map at `side` and the mean class probability of a scale, with and without a flip."""
    maps, classes = mean_view(model, images, TtaConfig(scales=(scale,)), "float32", side)
    assert maps is not None and classes is not None
    return maps, classes


@pytest.mark.parametrize("side", [32, 64, 96])
def test_scales_count_by_their_weights_and_maps_have_the_stored_side(side: int) -> None:
    images, model = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)), Ramp(True)
    tta = TtaConfig(scales=(1.0, 1.5, 2.0), scale_weights=(2, 5, 3))
    maps, classes = mean_view(model, images, tta, "float32", side)
    assert maps is not None and maps.shape == (2, 1, side, side) and classes is not None
    alone = [views(model, images, scale, side) for scale in tta.scales]
    weighted = zip((0.2, 0.5, 0.3), alone, strict=True)
    expected = [(weight * map_, weight * class_) for weight, (map_, class_) in weighted]
    torch.testing.assert_close(maps, sum(map_ for map_, _ in expected))
    torch.testing.assert_close(classes, sum(class_ for _, class_ in expected))
    other = mean_view(model, images, tta.model_copy(update={"scale_weights": (5, 2, 3)}), "float32", side)
    assert other[0] is not None and (maps - other[0]).abs().max() > 1e-3, "the order counts"


@pytest.mark.parametrize("weight", [1, 0.1, 7.3])
def test_equal_weights_are_no_weights(weight: float) -> None:
    images, model = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)), Ramp(True)
    scales = (0.5, 1.0, 1.5)
    plain, classes = mean_view(model, images, TtaConfig(scales=scales), "float32", 64)
    tta = TtaConfig(scales=scales, scale_weights=(weight,) * 3)
    equal, equal_classes = mean_view(model, images, tta, "float32", 64)
    assert classes is not None and equal_classes is not None and plain is not None and equal is not None
    assert torch.equal(plain, equal) and torch.equal(classes, equal_classes)
