"""Every loss against a float64 reference, at its extremes, and its gradient over ranks.

As a script under torchrun this file writes the gradients of two ranks.
"""

import math
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.parallel import DistributedDataParallel

from pneumo_dist.config.loss import LossConfig
from pneumo_dist.network import losses
from pneumo_dist.network.losses import combo_loss, loss_terms
from pneumo_dist.ranks.ranks import process_group
from shards.errors import InputError

NAMES = ("bce", "dice", "focal", "lovasz", "classification")


def only(name: str, **options: Any) -> LossConfig:
    return LossConfig.model_validate({**dict.fromkeys(NAMES, 0.0), name: 1.0, **options})


ALL = LossConfig(bce=3, dice=1, focal=4, lovasz=0.5, classification=2)

# The references: Python floats, one pixel at a time.


def cross_entropy(logit: float, label: float) -> float:
    z = logit if label else -logit
    return max(-z, 0.0) + math.log1p(math.exp(-abs(z)))


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def jaccard_loss(mispredicted: set[int], foreground: set[int]) -> float:
    """Equation 5 of Berman et al."""
    return len(mispredicted) / len(foreground | mispredicted) if mispredicted else 0.0


def lovasz_extension(errors: Sequence[float], foreground: set[int]) -> float:
    """Equation 8 of Berman et al.: errors in descending order, each times the increase of the set's loss."""
    order = sorted(range(len(errors)), key=lambda pixel: -errors[pixel])
    sets = [set(order[:count]) for count in range(len(order) + 1)]
    rises = [jaccard_loss(after, foreground) - jaccard_loss(before, foreground) for before, after in pairwise(sets)]
    return sum(errors[pixel] * rise for pixel, rise in zip(order, rises, strict=True))


def reference(logits: Any, masks: Any, config: LossConfig, classes: Any = None) -> dict[str, float]:
    """Return all terms and their weighted sum from arrays (n, 1, h, w)."""
    films = [film.ravel().tolist() for film in np.asarray(logits, np.float64)]
    labels = [film.ravel().tolist() for film in np.asarray(masks, np.float64)]
    flat = [pair for film in zip(films, labels, strict=True) for pair in zip(*film, strict=True)]
    entropies = [cross_entropy(x, y) * (config.bce_positive_weight if y else 1.0) for x, y in flat]
    gamma, epsilon = config.focal_gamma, config.dice_epsilon
    focal = [(sigmoid(-x) if y else sigmoid(x)) ** gamma * cross_entropy(x, y) for x, y in flat]

    def dice(pairs: Sequence[tuple[float, float]]) -> float:
        p, y = [sigmoid(x) for x, _ in pairs], [y for _, y in pairs]
        value = (2 * sum(map(math.prod, zip(p, y, strict=True))) + epsilon) / (sum(p) + sum(y) + epsilon)
        return 1 - value if config.dice_form == "linear" else -math.log(value)

    parts = [list(zip(x, y, strict=True)) for x, y in zip(films, labels, strict=True)]
    counted = [part for part in parts if config.dice_films == "all" or any(y for _, y in part)]
    vectors = counted if config.dice_over == "image" else [[pair for part in counted for pair in part]]
    hinges = []
    for x, y in zip(films, labels, strict=True):
        white, black = {i for i, one in enumerate(y) if one}, {i for i, one in enumerate(y) if not one}
        for sign, foreground in ((1, white), (-1, black)):
            errors = [max(0.0, 1 - sign * v * (1 if i in foreground else -1)) for i, v in enumerate(x)]
            hinges.append(lovasz_extension(errors, foreground))
    scores = [0.0] * len(films) if classes is None else np.asarray(classes, np.float64).ravel().tolist()
    terms = {
        "bce": sum(entropies) / len(entropies),
        "dice": sum(map(dice, vectors)) / max(len(vectors), 1),
        "focal": sum(focal) / len(focal),
        "lovasz": sum(hinges) / len(hinges),
        "classification": sum(cross_entropy(s, max(y)) for s, y in zip(scores, labels, strict=True)) / len(scores),
    }
    return {"loss": sum(getattr(config, name) * value for name, value in terms.items()), **terms}


def random_batch(films: int = 3, size: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(films, 1, size, size, generator=generator)
    masks = (torch.rand(films, 1, size, size, generator=generator) < 0.2).float()
    masks[0] = 0
    return logits, masks, torch.randn(films, 1, generator=generator)


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    # Some logits are rounded, for ties.
    value = st.one_of(st.floats(-40, 40, width=32), st.integers(-2, 2).map(float))
    logits = draw(st.lists(value, min_size=n * h * w, max_size=n * h * w))
    label = draw(st.sampled_from((st.just(0.0), st.just(1.0), st.sampled_from((0.0, 1.0)))))
    masks = draw(st.lists(label, min_size=n * h * w, max_size=n * h * w))
    classes = draw(st.lists(value, min_size=n, max_size=n))
    return (
        torch.tensor(logits, dtype=torch.float64).reshape(n, 1, h, w),
        torch.tensor(masks, dtype=torch.float64).reshape(n, 1, h, w),
        torch.tensor(classes, dtype=torch.float64).reshape(n, 1),
    )


weights = st.sampled_from((0.0, 0.5, 1.0, 4.0))
configs = st.builds(
    LossConfig,
    bce=weights,
    dice=weights,
    focal=weights,
    lovasz=weights,
    classification=st.just(1.0) | weights.filter(bool),
    bce_positive_weight=st.sampled_from((1.0, 0.3, 5.0)),
    dice_films=st.sampled_from(("all", "positive")),
    focal_gamma=st.sampled_from((0.0, 0.5, 1.0, 2.0, 5.0)),
    dice_over=st.sampled_from(("batch", "image")),
    dice_form=st.sampled_from(("linear", "log")),
    dice_epsilon=st.sampled_from((1e-6, 1.0)),
)


@settings(deadline=None, max_examples=150)
@given(batches(), configs)
def test_terms_equal_a_float64_reference(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor], config: LossConfig
) -> None:
    logits, masks, classes = batch
    expected = reference(logits, masks, config, classes)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        terms = combo_loss(logits.to(dtype), masks.to(dtype), config, classes.to(dtype))
        assert tuple(terms) == loss_terms(config)
        for name, term in terms.items():
            assert float(term) == pytest.approx(expected[name], rel=tolerance, abs=tolerance), name
            assert term.dtype == dtype and term.shape == ()


@pytest.mark.parametrize("over", ["batch", "image"])
@pytest.mark.parametrize("form", ["linear", "log"])
def test_dice_of_positive_films_leaves_out_the_others(over: str, form: str) -> None:
    logits, masks, _ = random_batch()
    logits.requires_grad_()
    config = only("dice", dice_films="positive", dice_over=over, dice_form=form)
    found = combo_loss(logits, masks, config)["loss"]
    found.backward()
    assert logits.grad is not None and not logits.grad[0].any() and logits.grad[1:].any()
    rest = combo_loss(logits[1:], masks[1:], only("dice", dice_over=over, dice_form=form))["loss"]
    assert torch.allclose(found, rest, rtol=1e-6, atol=0)
    empty = combo_loss(logits[:1], masks[:1], config)["loss"]
    assert empty.item() == 0 and empty.requires_grad


def test_terms_without_a_weight_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dice_loss", "focal_loss", "symmetric_lovasz", "classification_bce"):
        monkeypatch.setattr(losses, name, None)
    logits, masks, _ = random_batch()
    assert tuple(combo_loss(logits, masks, only("bce"))) == ("loss", "bce") == loss_terms(only("bce"))
    assert loss_terms(LossConfig()) == ("loss", "bce", "dice", "focal")
    assert loss_terms(ALL) == ("loss", *NAMES)
    for name in NAMES:
        assert loss_terms(only(name)) == ("loss", name)


def test_classification_without_a_head_is_refused() -> None:
    logits, masks, _ = random_batch()
    with pytest.raises(InputError, match=r"set model\.classification"):
        combo_loss(logits, masks, only("classification"))


def test_batch_dice_takes_the_micro_batch_as_one_vector() -> None:
    logits, masks, _ = random_batch()
    whole = float(combo_loss(logits, masks, only("dice"))["dice"])
    films = [float(combo_loss(logits[i : i + 1], masks[i : i + 1], only("dice"))["dice"]) for i in range(3)]
    assert abs(whole - float(np.mean(films))) > 0.01
    each = float(combo_loss(logits, masks, only("dice", dice_over="image"))["dice"])
    assert each == pytest.approx(float(np.mean(films)), rel=1e-6)


def test_correct_prediction_costs_nothing_even_for_an_empty_mask() -> None:
    empty, full = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    for form in ("linear", "log"):
        for masks, logit in ((empty, -100.0), (full, 100.0)):
            config = ALL.model_copy(update={"dice_form": form})
            terms = combo_loss(torch.full_like(masks, logit), masks, config, torch.full((2, 1), logit))
            assert all(abs(float(term)) < 1e-6 for term in terms.values()), terms


def test_lovasz_of_plain_hits_and_misses_is_the_jaccard_loss() -> None:
    """At errors of 0 and 1 the convex extension is the set function itself: 1 − |X ∩ Y| / |X ∪ Y|, of both classes."""
    _, masks, _ = random_batch()
    wrong = torch.rand(masks.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    logits = torch.where(wrong, 0.0, 2 * masks - 1)
    actual = float(combo_loss(logits, masks, only("lovasz"))["lovasz"])
    truth = masks.bool()
    predicted = truth ^ wrong
    expected = []
    for film in range(len(masks)):
        for x, y in ((predicted[film], truth[film]), (~predicted[film], ~truth[film])):
            expected.append(1 - float((x & y).sum()) / float((x | y).sum()))
    assert actual == pytest.approx(float(np.mean(expected)), rel=1e-6)


def test_library_agrees_where_it_can_compute() -> None:
    logits, masks, _ = random_batch()
    hinge = smp.losses.LovaszLoss("binary", per_image=True)
    both = (hinge(logits, masks) + hinge(-logits, 1 - masks)) / 2
    torch.testing.assert_close(combo_loss(logits, masks, only("lovasz"))["lovasz"], both)
    focal = smp.losses.FocalLoss("binary", gamma=2.0)(logits, masks)
    torch.testing.assert_close(combo_loss(logits, masks, only("focal"))["focal"], focal)
    for form in ("linear", "log"):
        # Its `smooth` is added to I, not to 2I.
        dice = smp.losses.DiceLoss("binary", log_loss=form == "log", smooth=0.5)(logits, masks)
        ours = combo_loss(logits, masks, only("dice", dice_epsilon=1.0, dice_form=form))["dice"]
        torch.testing.assert_close(ours, dice)


EXTREMES = {
    "all": ALL,
    "log": only("dice", dice_form="log"),
    "log-image": only("dice", dice_form="log", dice_over="image", dice_epsilon=1.0),
    "smallest-epsilon": only("dice", dice_form="log", dice_epsilon=1e-12),
    "focal-0": only("focal", focal_gamma=0),
    "focal-half": only("focal", focal_gamma=0.5),
    "focal-1": only("focal", focal_gamma=1),
}


@pytest.mark.parametrize("config", EXTREMES.values(), ids=EXTREMES)
@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_and_gradient_are_finite_at_the_extremes(config: LossConfig, label: float, dtype: torch.dtype) -> None:
    masks = torch.full((2, 1, 4, 4), label)
    for logit in (-1e4, -200.0, -100.0, -17.0, -5.0, 0.0, 5.0, 17.0, 100.0, 200.0, 1e4):
        logits = torch.full(masks.shape, logit, dtype=dtype, requires_grad=True)
        classes = torch.full((2, 1), logit, dtype=dtype, requires_grad=True)
        terms = combo_loss(logits, masks, config, classes)
        terms["loss"].backward()
        assert all(torch.isfinite(term) for term in terms.values()), (logit, terms)
        assert logits.grad is not None and bool(torch.isfinite(logits.grad).all()), logit
        if abs(logit) <= 200:
            expected = reference(logits.detach().float(), masks, config, classes.detach().float())
            for name, term in terms.items():
                assert float(term.detach()) == pytest.approx(expected[name], rel=1e-4, abs=1e-6), (name, logit)


def test_gradient_of_a_wrong_prediction_survives_any_confidence() -> None:
    """A clamped probability (at 1e-8 in the original, 0 in half precision) has no gradient here, or no finite loss."""
    masks = torch.ones(1, 1, 4, 4)
    for name in ("bce", "focal", "lovasz"):
        for dtype in (torch.float32, torch.float16):
            logits = torch.full((1, 1, 4, 4), -60.0, dtype=dtype, requires_grad=True)
            terms = combo_loss(logits, masks, only(name))
            terms["loss"].backward()
            assert logits.grad is not None
            assert float(logits.grad.float().sum()) == pytest.approx(-1, rel=0.05), name
            assert 59 < float(terms[name].detach()) < 62


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_under_autocast_equals_its_widened_logits(dtype: torch.dtype) -> None:
    logits, masks, classes = random_batch()
    half, half_classes = logits.to(dtype), classes.to(dtype)
    expected = combo_loss(half.float(), masks, ALL, half_classes.float())
    with torch.autocast("cpu", dtype=dtype):
        terms = combo_loss(half, masks.to(dtype), ALL, half_classes)
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert all(torch.equal(terms[name], expected[name]) for name in expected)


def test_terms_are_computed_outside_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operations that autocast narrows differ by device and version."""
    logits, masks, _ = random_batch()
    seen = []

    def spy(*_: Any) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return torch.zeros(())

    monkeypatch.setattr(losses, "dice_loss", spy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        combo_loss(logits, masks, only("dice"))
    assert seen == [False]


SMOOTH = {
    "bce": only("bce"),
    "dice": only("dice"),
    "dice-log": only("dice", dice_form="log", dice_epsilon=1.0),
    "dice-image": only("dice", dice_over="image"),
    "dice-image-log": only("dice", dice_over="image", dice_form="log"),
    "focal": only("focal"),
    "focal-half": only("focal", focal_gamma=0.5),
    "lovasz": only("lovasz"),  # smooth unless two errors are equal or one is 0
    "classification": only("classification"),
    "all": ALL,
}


@pytest.mark.parametrize("config", SMOOTH.values(), ids=SMOOTH)
def test_gradients_equal_finite_differences(config: LossConfig) -> None:
    logits, masks, classes = (part.double() for part in random_batch(films=2, size=5))
    inputs = [logits.requires_grad_(), classes.requires_grad_()]
    used = inputs if config.classification else inputs[:1]

    def loss(logits: torch.Tensor, class_logits: torch.Tensor | None = None) -> torch.Tensor:
        return combo_loss(logits, masks, config, class_logits)["loss"]

    assert torch.autograd.gradcheck(loss, used)


@pytest.mark.parametrize("config", [ALL, only("lovasz"), EXTREMES["log"]], ids=["all", "lovasz", "log"])
def test_float32_gradients_of_a_large_film_equal_those_in_float64(config: LossConfig) -> None:
    generator = torch.Generator().manual_seed(2)
    masks = torch.zeros(1, 1, 768, 768)
    masks[..., 100:150, 300:420] = 1
    logits = 2 * torch.randn(masks.shape, generator=generator) + 4 * masks - 3
    actual = []
    for dtype in (torch.float32, torch.float64):
        wide = logits.detach().to(dtype).clone().requires_grad_()
        combo_loss(wide, masks, config, torch.zeros(1, 1, dtype=dtype))["loss"].backward()
        assert wide.grad is not None
        actual.append(wide.grad.double())
    # Errors that are equal only in float32 may swap places.
    off = (actual[0] - actual[1]).abs() > 1e-3 * actual[1].abs() + 1e-12
    assert float(off.double().mean()) < 1e-3


# Two ranks against one process.

RANKED = {
    "bce": only("bce"),
    "focal": only("focal"),
    "lovasz": only("lovasz"),
    "classification": only("classification"),
    "dice-image": only("dice", dice_over="image"),
    "dice-image-log": only("dice", dice_over="image", dice_form="log"),
    "dice-global": only("dice", dice_scope="global"),
    "dice-global-log": only("dice", dice_scope="global", dice_form="log", dice_epsilon=1.0),
    "all-global": ALL.model_copy(update={"dice_scope": "global"}),
    "dice-rank": only("dice"),
}


class Tiny(torch.nn.Module):
    """Two convolutions without batch norm, and a class logit from their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(1, 3, 3, padding=1)
        self.second = torch.nn.Conv2d(3, 1, 3, padding=1)
        self.head = torch.nn.Linear(3, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inner = torch.tanh(self.first(images))
        return self.second(inner), self.head(inner.mean((2, 3)))


def gradients(config: LossConfig, slices: Sequence[slice], world: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient and the last loss of a step over micro-batches of the same eight films."""
    torch.manual_seed(3)
    tiny = Tiny().double()
    images = torch.randn(8, 1, 9, 9, dtype=torch.float64)
    masks = (torch.rand(8, 1, 9, 9, dtype=torch.float64) < 0.3).double()
    masks[:3] = 0  # so that the sums of the ranks are far apart
    # With Dice on each rank, the head is not part of the loss.
    model: torch.nn.Module = DistributedDataParallel(tiny, find_unused_parameters=True) if world > 1 else tiny
    loss = torch.zeros(())
    for number, films in enumerate(slices):
        last = number + 1 == len(slices)
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
            logits, classes = model(images[films])
            loss = combo_loss(logits, masks[films], config, classes, world)["loss"]
            (loss / len(slices)).backward()
    actual = [torch.zeros_like(p) if p.grad is None else p.grad for p in tiny.parameters()]
    return torch.cat([gradient.flatten() for gradient in actual]), loss.detach()


# Micro-batches of each rank, and those of one process.
STEPS = {
    "2x4": ([[slice(0, 4)], [slice(4, 8)]], [slice(0, 8)]),
    "2x2x2": ([[slice(0, 2), slice(4, 6)], [slice(2, 4), slice(6, 8)]], [slice(0, 4), slice(4, 8)]),
}


def write_gradients(folder: Path) -> None:
    with process_group(cpu=True) as ranks:
        actual = {
            f"{name} {step}": gradients(config, slices[ranks.rank], ranks.world)
            for name, config in RANKED.items()
            for step, (slices, _) in STEPS.items()
        }
        # Evaluation: the ranks have different numbers of batches, so a collective would hang or fail.
        logits, masks, _ = random_batch(films=2)
        config = RANKED["dice-global"]
        alone = [combo_loss(logits, masks, config)["loss"] for _ in range(ranks.rank)]
        assert all(torch.equal(loss, combo_loss(logits, masks, only("dice"))["loss"]) for loss in alone)
        torch.save(actual, folder / f"{ranks.rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Return the gradients and losses of each rank."""
    from integration.conftest import ROOT, environment

    folder = tmp_path_factory.mktemp("ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*torchrun, __file__, folder], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=180
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", RANKED)
def test_gradients_of_two_ranks_equal_those_of_one(
    two_ranks: list[dict[str, tuple[torch.Tensor, torch.Tensor]]], name: str, step: str
) -> None:
    expected, loss = gradients(RANKED[name], STEPS[step][1], 1)
    assert float(expected.abs().max()) > 1e-3
    off = [float((rank[f"{name} {step}"][0] - expected).abs().max()) for rank in two_ranks]
    if name == "dice-rank":
        assert min(off) > 1e-4, "these films cannot distinguish Dice on each rank from global Dice"
        return
    assert max(off) < 1e-10
    if "dice-global" in name:
        assert all(float((rank[f"{name} {step}"][1] - loss).abs()) < 1e-10 for rank in two_ranks)


if __name__ == "__main__":
    write_gradients(Path(sys.argv[1]))


# Soft labels


def soft_batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels in 0..1 and weights of the pixels in 0..1, some of them 0."""
    chance = torch.Generator().manual_seed(seed)
    logits, labels, weights = (torch.rand(3, 1, 4, 5, generator=chance, dtype=torch.float64) for _ in range(3))
    return 8 * logits - 4, labels, weights * (weights > 0.3)


def naive_soft(
    name: str, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, config: LossConfig
) -> float:
    """BCE, focal loss or Dice of soft labels, pixel by pixel."""
    values, films = [], []
    for film, truth, weight in zip(logits, labels, weights, strict=True):
        overlap = size = 0.0
        for x, q, w in zip(*(each.flatten().tolist() for each in (film, truth, weight)), strict=True):
            p = 1 / (1 + math.exp(-x))
            if name == "bce":
                values.append(-w * (config.bce_positive_weight * q * math.log(p) + (1 - q) * math.log(1 - p)))
            gamma = config.focal_gamma
            if name == "focal":
                values.append(-w * (q * (1 - p) ** gamma * math.log(p) + (1 - q) * p**gamma * math.log(1 - p)))
            overlap, size = overlap + w * p * q, size + w * p + w * q
        films.append((overlap, size))
    if name != "dice":
        return float(sum(values) / len(values))
    if config.dice_over == "batch":
        films = [(sum(film[0] for film in films), sum(film[1] for film in films))]
    losses = [1 - (2 * o + config.dice_epsilon) / (s + config.dice_epsilon) for o, s in films]
    return float(sum(losses) / len(losses))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bce", {}),
        ("bce", {"bce_positive_weight": 3.0}),
        ("focal", {"focal_gamma": 0.0}),
        ("focal", {"focal_gamma": 1.5}),
        ("dice", {"dice_over": "batch"}),
        ("dice", {"dice_over": "image", "dice_epsilon": 1.0}),
    ],
)
def test_soft_labels_have_the_weighted_loss_of_their_definition(name: str, options: dict[str, Any]) -> None:
    logits, labels, weights = soft_batch()
    config = only(name, **options)
    found = combo_loss(logits, labels, config, weights=weights)[name]
    assert float(found) == pytest.approx(naive_soft(name, logits, labels, weights, config), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_soft_labels_of_0_and_1_with_weight_1_are_masks(name: str) -> None:
    logits, masks, classes = random_batch()
    plain = combo_loss(logits.double(), masks.double(), only(name), classes.double())["loss"]
    soft = combo_loss(
        logits.double(), masks.double(), only(name), classes.double(), weights=torch.ones_like(masks).double()
    )
    torch.testing.assert_close(soft["loss"], plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["lovasz", "classification"])
def test_lovasz_and_classification_take_labels_above_half_as_1(name: str) -> None:
    logits, labels, weights = soft_batch(1)
    labels[0] *= 0.5
    classes = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    soft = combo_loss(logits, labels, only(name), classes, weights=weights)["loss"]
    hard = combo_loss(logits, (labels > 0.5).double(), only(name), classes)["loss"]
    assert torch.equal(soft, hard)
