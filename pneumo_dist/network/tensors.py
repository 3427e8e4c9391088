"""Validate tensors read from a file, and load them into a network."""

from collections.abc import Iterator
from typing import Any

import torch

from shards.errors import InputError


def check_tensors(value: Any, where: object) -> None:
    """Raise InputError if a tensor of a nested state is not finite, not a plain array, or larger than its storage."""
    try:
        for tensor in _tensors(value):
            # A view that repeats one number is tiny in a file, and can exhaust the memory when it is used.
            is_plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
            if not is_plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise InputError(f"{where}: holds a tensor that is not a plain array; restore it or create it again")
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(f"{where}: holds weights that are not finite numbers; restore it or create it again")
    except RecursionError:
        raise InputError(f"{where}: is nested too deeply; restore it or create it again") from None


def tensor_bytes(value: Any) -> int:
    """Return the bytes that a file of a nested state needs for its tensors. Those that share memory are stored once."""
    storages = [tensor.untyped_storage() for tensor in _tensors(value) if tensor.layout is torch.strided]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a nested state, each object once: lists that hold a list twice may be endless to walk."""
    yield from _new_tensors(value, set())


def _new_tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if not isinstance(value, torch.Tensor | dict | list | tuple) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
        return
    for inner in value.values() if isinstance(value, dict) else value:
        yield from _new_tensors(inner, seen)


def is_weights(value: object) -> bool:
    """Return whether a value is a non-empty mapping of names to tensors."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items())


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], where: object) -> None:
    """Load weights into a network. Raises InputError if names, shapes or types differ from the network's."""
    expected = model.state_dict()
    fits = expected.keys() == weights.keys() and all(
        value.shape == expected[name].shape and value.dtype == expected[name].dtype for name, value in weights.items()
    )
    if not fits:
        raise InputError(f"{where}: its weights do not fit its model; it was written by another version")
    model.load_state_dict(weights)
