"""Counting the calls for which the host would wait for a GPU."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.host_step import one_element
from benchmarks.host_waits import counted_waits

VALUES = torch.arange(6.0)
MASK = VALUES > 2


@pytest.mark.parametrize(
    ("work", "count"),
    [
        (lambda: VALUES.sum().item(), 1),
        (lambda: float(VALUES[1]) + int(VALUES[2]), 2),
        (lambda: bool(MASK.all()), 1),
        (lambda: VALUES.tolist(), 1),
        (lambda: VALUES.cpu().numpy(), 2),
        (lambda: VALUES[MASK], 1),
        (lambda: VALUES.clone().masked_fill_(MASK, 0), 0),
        (lambda: VALUES.nonzero(), 1),
        (lambda: VALUES[torch.tensor([1, 2])] * 2 + VALUES[2:4], 0),
        (lambda: torch.stack([VALUES, VALUES]).to(torch.float64, non_blocking=True).sum(), 0),
        (lambda: torch.nn.utils.get_total_norm([VALUES]), 0),
    ],
)
def test_calls_that_need_a_value_on_the_host_are_counted(work: Callable[[], object], count: int) -> None:
    with counted_waits() as waits:
        work()
    assert waits.count == count


def test_waits_of_a_backward_pass_are_counted() -> None:
    class Reading(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, value: torch.Tensor) -> torch.Tensor:
            return value * 2

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * gradient[0].item()

    with counted_waits() as waits:
        Reading.apply(torch.ones(2, requires_grad=True)).sum().backward()
    assert waits.count == 1


def test_model_of_one_element_tensors_keeps_their_number_and_names() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    names = {name: value.dtype for name, value in model.state_dict().items()}
    small = one_element(model)
    assert {name: value.dtype for name, value in small.state_dict().items()} == names
    assert all(value.numel() == 1 for value in small.state_dict().values())
    assert len(list(small.parameters())) == 4 and len(list(small.buffers())) == 3
