"""Weights from a file: numbers, and those that a network asks for."""

from collections.abc import Iterator
from typing import Any

import torch

from shards.errors import InputError


def check_tensors(value: Any, where: object) -> None:
    """Raise InputError where a tensor of a nested state is not finite, not plain memory, or larger than its memory."""
    try:
        for tensor in _tensors(value):
            # A view that repeats one number over a shape takes no room in a file, and all there is when it is used.
            is_plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
            if not is_plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise InputError(f"{where}: holds a tensor that is no plain array; restore it or make it again")
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(f"{where}: holds weights that are not finite numbers; restore it or make it again")
    except RecursionError:
        raise InputError(f"{where}: is nested too deep; restore it or make it again") from None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def is_weights(value: object) -> bool:
    """Return whether a value is a mapping of names to tensors, with at least one."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items())


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], where: object) -> None:
    """Load weights into a network. Raises InputError where names, shapes or types are not the network's."""
    own = model.state_dict()
    fits = own.keys() == weights.keys() and all(
        value.shape == own[name].shape and value.dtype == own[name].dtype for name, value in weights.items()
    )
    if not fits:
        raise InputError(f"{where}: its weights do not fit its model; it was written by another version")
    model.load_state_dict(weights)
