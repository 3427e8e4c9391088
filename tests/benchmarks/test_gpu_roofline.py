"""Costs of operators, compared with counts by hand, with torch's counter, and with separate convolutions for groups."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_cards import CARDS, Card, card_of
from benchmarks.gpu_roofline import Operator, roofline_seconds, seconds_by_name, total_flops, trace
from pneumo_dist.config.loss import LossConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.network.build import build_model
from pneumo_dist.network.losses import combo_loss

# Round peaks, so that durations can be computed by hand.
CARD = Card(half=1.0, tf32=0.5, float32=0.25, bandwidth=1.0, source="none")
FLOAT = 4


def traced(step: Callable[[], object]) -> dict[str, Operator]:
    """Return the operators of a step by name; each must occur once."""
    operators = trace(step)
    assert len({each.name for each in operators}) == len(operators)
    return {each.name: each for each in operators}


def test_matrix_product_reads_both_matrices_and_writes_one() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    (product,) = traced(lambda: a @ b).values()
    assert (product.name, product.flops) == ("mm", 2 * 3 * 5 * 7)
    assert product.bytes == FLOAT * (3 * 5 + 5 * 7 + 3 * 7)


@pytest.mark.parametrize(
    ("step", "values"),
    [
        (lambda x, y: x + y, 3),
        (lambda x, y: x.add_(y), 3),
        (lambda x, y: torch.add(x, x), 2),
        (lambda x, y: x.copy_(y), 2),
        (lambda x, y: x.zero_(), 1),
        (lambda x, y: torch.zeros_like(x), 2),
        (lambda x, y: x.relu(), 2),
        (lambda x, y: torch.empty_like(x), 0),
        (lambda x, y: x.view(5, 4).t()[1:].detach(), 0),
        (lambda x, y: float(x.sum()), 1.05),
    ],
)
def test_bytes_count_reads_and_writes(step: Callable[..., Any], values: float) -> None:
    x, y = torch.ones(4, 5), torch.ones(4, 5)
    operators = trace(lambda: step(x, y))
    # zeros_like may be one operator that reads nothing, or two.
    assert sum(each.bytes for each in operators) in ({FLOAT * 20 * values} if values != 2 else {160, 80})
    assert total_flops(operators) == 0


def test_expanded_tensor_counts_its_size_in_memory() -> None:
    row, matrix = torch.ones(1, 50), torch.ones(40, 50)
    (add,) = trace(lambda: row.expand(40, 50) + matrix)
    assert add.bytes == FLOAT * (50 + 2 * 40 * 50)


def test_operator_has_the_data_type_of_its_inputs() -> None:
    a, short = torch.ones(8, 8), torch.ones(8, 8, dtype=torch.bfloat16)
    (half,) = trace(lambda: short @ short)
    (whole,) = trace(lambda: a @ a)
    assert half.dtype == torch.bfloat16 and whole.dtype == torch.float32
    assert half.bytes * 2 == whole.bytes


@pytest.mark.parametrize(("transposed", "stride"), [(False, 1), (False, 2), (True, 2)])
def test_grouped_convolution_costs_as_much_as_separate_ones(transposed: bool, stride: int) -> None:
    convolve: Any = F.conv_transpose2d if transposed else F.conv2d
    image, count = torch.randn(2, 8, 12, 10), 4
    weight = torch.randn(8, 3, 3, 3) if transposed else torch.randn(12, 2, 3, 3)

    def whole() -> None:
        leaf, kernel = image.clone().requires_grad_(), weight.clone().requires_grad_()
        convolve(leaf, kernel, stride=stride, groups=count).sum().backward()

    def single() -> None:
        for group, weights in zip(image.chunk(count, 1), weight.chunk(count, 0), strict=True):
            leaf, kernel = group.clone().requires_grad_(), weights.clone().requires_grad_()
            convolve(leaf, kernel, stride=stride).sum().backward()

    assert total_flops(trace(whole)) == total_flops(trace(single)) > 0
    (forward,) = [each for each in trace(lambda: convolve(image, weight, stride=stride, groups=count)) if each.flops]
    out = convolve(image, weight, stride=stride, groups=count)
    products = image.numel() * 3 * 9 if transposed else out.numel() * 2 * 9
    assert forward.flops == 2 * products
    assert forward.bytes == FLOAT * (image.numel() + weight.numel() + out.numel())


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 16 * 16, 2),
    )


def test_step_without_groups_matches_torchs_counter() -> None:
    model, image = network(), torch.randn(2, 3, 16, 16)

    def step() -> None:
        model(image).sum().backward()

    with FlopCounterMode(display=False) as counter:
        step()
    assert total_flops(trace(step)) == counter.get_total_flops() > 0


@pytest.mark.parametrize("fused", [True, False])
def test_optimizer_is_counted(fused: bool) -> None:
    parameter = torch.nn.Parameter(torch.ones(1000))
    optimizer = torch.optim.Adam([parameter], fused=fused)
    parameter.grad = torch.ones(1000)
    optimizer.step()  # creates its state
    moved = sum(each.bytes for each in trace(optimizer.step))
    # Parameter, gradient and two moments are read; parameter and moments are written. torch also marks the gradient as
    # written, because it may be unscaled in place. Without the fused kernel there are several times as many passes.
    assert FLOAT * 7000 <= moved <= FLOAT * (8100 if fused else 40_000)


@pytest.mark.parametrize(
    ("encoder", "rate", "gflop"),
    [("se_resnext50_32x4d", 654, 258), ("resnet34", None, 745 / 4)],
    ids=lambda each: str(each),
)
def test_roofline_of_a_network_is_close_to_an_independent_estimate(
    encoder: str, rate: int | None, gflop: float
) -> None:
    """The step at 512 px is traced without a device; the independent bf16 bound on an H100 is 654 images/s."""
    batch = 4
    with FakeTensorMode():
        model = build_model(ModelConfig(encoder=encoder), pretrained=False).train()
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        images, masks = torch.randn(batch, 3, 512, 512), torch.zeros(batch, 1, 512, 512)

        def step() -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(images)
            combo_loss(logits, masks, LossConfig())["loss"].backward()
            optimizer.step()

        operators = trace(step)
    assert total_flops(operators) / batch / 1e9 == pytest.approx(gflop, rel=0.02)
    if rate is not None:
        bound = batch / roofline_seconds(operators, CARDS["NVIDIA H100 80GB HBM3"])
        assert bound == pytest.approx(rate, rel=0.15)


def test_operator_takes_the_larger_of_its_limits_and_a_step_their_sum() -> None:
    compute = Operator("mm", flops=3 * 10**12, bytes=10**9, dtype=torch.bfloat16)
    memory = Operator("add", flops=0, bytes=2 * 10**9, dtype=torch.float32)
    assert compute.seconds(CARD) == 3.0 and memory.seconds(CARD) == 2.0
    assert roofline_seconds([compute, memory, memory], CARD) == 7.0
    assert seconds_by_name([compute, memory, memory], CARD) == {"add": 4.0, "mm": 3.0}
    whole = Operator("mm", flops=10**12, bytes=1, dtype=torch.float32)
    assert whole.seconds(CARD, tf32=True) == 2.0 and whole.seconds(CARD, tf32=False) == 4.0


def test_peaks_of_cards_exclude_sparsity_and_have_a_source() -> None:
    for name, card in CARDS.items():
        assert name.startswith("NVIDIA ") and "data sheet" in card.source
        # Tensor cores compute half-precision products twice as fast as TF32, and TF32 faster than float32 units.
        assert math.isclose(card.half, 2 * card.tf32, rel_tol=0.02) and card.tf32 > card.float32
    assert card_of("NVIDIA H100 80GB HBM3") is CARDS["NVIDIA H100 80GB HBM3"]
    assert card_of("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert card_of("something", "100,50,10,900") == Card(100, 50, 10, 900, "given by hand")
    with pytest.raises(ValueError):
        card_of("something", "100,50")
