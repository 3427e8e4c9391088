"""Tensors read from a file: only finite, plain arrays that fit the network are accepted."""

from typing import Any

import pytest
import torch

from pneumo_dist.network.tensors import check_tensors, is_weights, load_weights, tensor_bytes
from shards.errors import InputError


@pytest.mark.parametrize(
    "value", [torch.ones(3), {"a": [torch.zeros(2, dtype=torch.int64), ()]}, (torch.ones(4)[1:3],), 5]
)
def test_finite_plain_arrays_pass_at_any_depth(value: Any) -> None:
    check_tensors(value, "x.pt")


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.tensor([1.0, float("nan")]), "not finite"),
        (torch.tensor([float("-inf")]), "not finite"),
        (torch.zeros(1).expand(10**6, 10**6), "not a plain array"),
        (torch.ones(4, 4).to_sparse(), "not a plain array"),
        (torch.ones(4, device="meta"), "not a plain array"),
        (nested(10**5), "nested too deeply"),
    ],
)
def test_other_tensors_are_refused_with_the_file_at_any_depth(tensor: Any, reason: str) -> None:
    with pytest.raises(InputError, match=rf"^x\.pt: .*{reason}"):
        check_tensors({"good": torch.ones(2), "state": [({"a": tensor},)]}, "x.pt")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_tensors_are_refused() -> None:
    with pytest.raises(InputError, match=r"^x\.pt: .*not a plain array"):
        check_tensors({"a": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8)}, "x.pt")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": torch.ones(1)}, True),
        ({}, False),
        (None, False),
        ([torch.ones(1)], False),
        ({"a": torch.ones(1), "b": 1.0}, False),
        ({1: torch.ones(1)}, False),
    ],
)
def test_weights_are_a_non_empty_mapping_of_names_to_tensors(value: object, expected: bool) -> None:
    assert is_weights(value) is expected


def test_weights_are_loaded_only_if_names_shapes_and_types_are_the_networks() -> None:
    model, weights = torch.nn.Linear(2, 1), {"weight": torch.tensor([[3.0, 4.0]]), "bias": torch.tensor([5.0])}
    load_weights(model, weights, "x.pt")
    assert model(torch.ones(1, 2)).item() == 12
    for other in (
        {"weight": weights["weight"]},
        {**weights, "more": torch.ones(1)},
        {**weights, "bias": torch.ones(2)},
        {**weights, "bias": torch.ones(1, dtype=torch.float64)},
    ):
        with pytest.raises(InputError, match=r"^x\.pt: its weights do not fit its model"):
            load_weights(model, other, "x.pt")
    assert model(torch.ones(1, 2)).item() == 12


def test_bytes_of_tensors_that_share_memory_count_once() -> None:
    whole = torch.zeros(10)
    state = {"a": [whole[:4], whole[4:]], "b": (torch.ones(3, dtype=torch.int64), torch.zeros(1).expand(10**9)), "c": 5}
    assert tensor_bytes(state) == 40 + 24 + 4


def test_every_tensor_is_checked_once() -> None:
    shared: list[Any] = [torch.ones(2)]
    for _ in range(60):
        shared = [shared, shared]
    check_tensors(shared, "x.pt")
    assert tensor_bytes(shared) == 8
    with pytest.raises(InputError, match="not finite"):
        check_tensors([shared, {"a": [torch.tensor([float("nan")])]}], "x.pt")
