"""The combo loss against a float64 reference, and at its extremes."""

import numpy as np
import pytest
import torch

from pneumo_dist.config import LossConfig
from pneumo_dist.losses import combo_loss


def reference(logits: torch.Tensor, masks: torch.Tensor, config: LossConfig) -> dict[str, float]:
    x, y = logits.double().numpy().ravel(), masks.double().numpy().ravel()
    p = 1 / (1 + np.exp(-x))
    true = np.where(y == 1, p, 1 - p)
    bce = float(-np.log(true).mean())
    focal = float((-((1 - true) ** config.focal_gamma) * np.log(true)).mean())
    epsilon = config.dice_epsilon
    dice = 1 - (2 * float((p * y).sum()) + epsilon) / (float(p.sum()) + float(y.sum()) + epsilon)
    return {
        "bce": bce,
        "dice": dice,
        "focal": focal,
        "loss": config.bce * bce + config.dice * dice + config.focal * focal,
    }


def random_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(3, 1, 16, 16, generator=generator)
    return logits, (torch.rand(3, 1, 16, 16, generator=generator) < 0.2).float()


@pytest.mark.parametrize(
    "config",
    [
        LossConfig(),
        LossConfig(bce=3, dice=1, focal=4),
        LossConfig(bce=0, dice=1, focal=0, dice_epsilon=1.0),
        LossConfig(bce=0, dice=0, focal=2, focal_gamma=0.5),
        LossConfig(focal_gamma=0),
    ],
)
def test_terms_equal_a_float64_reference(config: LossConfig) -> None:
    logits, masks = random_batch()
    terms = combo_loss(logits, masks, config)
    for name, value in reference(logits, masks, config).items():
        assert float(terms[name]) == pytest.approx(value, rel=2e-5, abs=1e-6), name
        assert terms[name].dtype == torch.float32 and terms[name].shape == ()


def test_dice_takes_the_micro_batch_as_one_vector() -> None:
    logits, masks = random_batch()
    masks[0] = 0
    whole = float(combo_loss(logits, masks, LossConfig())["dice"])
    films = [float(combo_loss(logits[i : i + 1], masks[i : i + 1], LossConfig())["dice"]) for i in range(3)]
    assert abs(whole - float(np.mean(films))) > 0.01


def test_gradient_equals_that_of_a_float64_formula() -> None:
    logits, masks = random_batch()
    logits.requires_grad_()
    combo_loss(logits, masks, LossConfig(bce=3, dice=1, focal=4))["loss"].backward()
    wide = logits.detach().double().requires_grad_()
    p, y = torch.sigmoid(wide), masks.double()
    true = torch.where(y == 1, p, 1 - p)
    dice = 1 - (2 * (p * y).sum() + 1e-6) / (p.sum() + y.sum() + 1e-6)
    (3 * -true.log().mean() + dice + 4 * -((1 - true) ** 2 * true.log()).mean()).backward()
    assert logits.grad is not None and wide.grad is not None
    torch.testing.assert_close(logits.grad.double(), wide.grad, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("logit", [-1e4, -100.0, 0.0, 100.0, 1e4])
@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_finite_at_the_extremes(
    label: float, logit: float, gamma: float, dtype: torch.dtype
) -> None:
    logits = torch.full((2, 1, 8, 8), logit, dtype=dtype, requires_grad=True)
    terms = combo_loss(logits, torch.full((2, 1, 8, 8), label), LossConfig(focal_gamma=gamma))
    terms["loss"].backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())


def test_gradient_is_finite_for_sure_pixels_and_a_focal_exponent_below_one() -> None:
    logits = torch.full((1, 1, 8, 8), 200.0, requires_grad=True)
    combo_loss(logits, torch.ones(1, 1, 8, 8), LossConfig(focal_gamma=0.5))["loss"].backward()
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())


def test_a_right_answer_costs_nothing_even_where_nothing_is_to_be_found() -> None:
    empty, full = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    for masks, logit in ((empty, -100.0), (full, 100.0)):
        assert float(combo_loss(torch.full_like(masks, logit), masks, LossConfig())["loss"]) < 1e-6


def test_half_precision_is_widened_before_the_sums_even_under_autocast() -> None:
    logits, masks = random_batch()
    half = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = combo_loss(half, masks, LossConfig())
    expected = reference(half.float(), masks, LossConfig())
    assert float(terms["loss"]) == pytest.approx(expected["loss"], rel=2e-5)
