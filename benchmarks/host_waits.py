"""Counts the calls for which the host would wait for a GPU, also where there is none."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# Operators whose result, or its shape, depends on values that are on the device.
_READING = frozenset({_aten._local_scalar_dense, _aten.nonzero, _aten.masked_select, _aten._unique2, _aten.equal})
_INDEXING = frozenset({_aten.index, _aten.index_put_})
# Methods that copy a tensor to the host. `item` and comparisons are counted as operators.
_COPYING = frozenset({torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy})


@dataclass
class Waits:
    """Number of waits so far."""

    count: int = 0


@contextmanager
def counted_waits() -> Iterator[Waits]:
    """Count the waits in a block of code that computes on the CPU. Copies to the host by `to` are not seen."""
    waits = Waits()
    with _Methods(waits), _Operators(waits):
        yield waits


class _Methods(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self._waits.count += func in _COPYING
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._waits = waits

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        packet = func.overloadpacket
        self._waits.count += packet in _READING or (packet in _INDEXING and any(map(_is_mask, args[1])))
        return func(*args, **(kwargs or {}))


def _is_mask(index: torch.Tensor | None) -> bool:
    """Return whether an index selects by value, so that the size of the result is unknown beforehand."""
    return index is not None and index.dtype in (torch.bool, torch.uint8)
