"""Compute the eager roofline of a training step: its duration if every operator ran at a limit of the card.

Without torch.compile, each operator reads its inputs from memory and writes its outputs back. It takes at least
bytes / bandwidth and at least FLOP / peak. The bound is the larger of the two, summed over all operators: the roofline
of S. Williams, A. Waterman and D. Patterson, "Roofline: an insightful visual performance model for multicore
architectures", CACM 52(4), 2009, applied per operator.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.gpu_cards import Card

aten = torch.ops.aten
# Operators that launch no kernel, although their schemas do not say so.
FREE = frozenset(
    {
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"),
        *("_local_scalar_dense", "lift_fresh", "resize_", "set_"),
    }
)
# Operators that overwrite an argument without reading it.
OVERWRITING = frozenset({"copy_", "fill_", "zero_", "_foreach_zero_", "_foreach_copy_"})


@dataclass(frozen=True)
class Operator:
    """One operator of a step: its aten name, floating-point operations, bytes read and written, and data type."""

    name: str
    flops: int
    bytes: int
    dtype: torch.dtype

    def seconds(self, card: Card, tf32: bool = True) -> float:
        """Return its minimum duration on a card."""
        return max(self.flops / card.flops_per_s(self.dtype, tf32), self.bytes / card.bytes_per_s)


def roofline_seconds(operators: Iterable[Operator], card: Card, tf32: bool = True) -> float:
    """Return the minimum duration of operators that run one after the other."""
    return sum(operator.seconds(card, tf32) for operator in operators)


def total_flops(operators: Iterable[Operator]) -> int:
    """Return the floating-point operations of a step; a multiply-add counts as two."""
    return sum(operator.flops for operator in operators)


def seconds_by_name(operators: Iterable[Operator], card: Card, tf32: bool = True) -> Mapping[str, float]:
    """Return the roofline's seconds by operator name, largest first."""
    seconds: dict[str, float] = defaultdict(float)
    for operator in operators:
        seconds[operator.name] += operator.seconds(card, tf32)
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def trace(step: Callable[[], object]) -> list[Operator]:
    """Run a step; return its operators (forward, backward and optimizer) in order of execution."""
    recorder = _Recorder()
    with recorder:
        step()
    return recorder.operators


class _Recorder(TorchDispatchMode):
    """Records every operator that computes or moves data; views are free."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.operators: list[Operator] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        out = func(*args, **keywords)
        if not _is_free(func):
            self.operators.append(cost(func, args, keywords, out))
        return out


def cost(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Operator:
    """Return the cost of an operator with these arguments and results."""
    name = func._schema.name.removeprefix("aten::")
    inputs, outputs = _tensors((args, kwargs)), _tensors(out)
    changed = _changed(func, args, kwargs)
    read = [each for each in inputs if name not in OVERWRITING or not _is_in(each, changed)]
    written = [*changed, *(each for each in outputs if not _is_in(each, changed))]
    floating = [each.dtype for each in [*inputs, *outputs] if each.is_floating_point()]
    return Operator(
        name,
        _flops(func, args, kwargs, out),
        sum(map(_bytes, _distinct(read))) + sum(map(_bytes, _distinct(written))),
        floating[0] if floating else torch.float32,
    )


def _is_free(func: Any) -> bool:
    """Return whether an operator is free, such as a view, which shares its input's memory and writes nothing."""
    if func.namespace != "aten" or func._schema.name.removeprefix("aten::") in FREE:
        return True
    infos = [result.alias_info for result in func._schema.returns]
    return bool(infos) and all(info is not None and not info.is_write for info in infos)


def _changed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the arguments that an operator writes to."""
    values = [*args, *(kwargs.get(argument.name) for argument in func._schema.arguments[len(args) :])]
    return [
        tensor
        for argument, value in zip(func._schema.arguments, values, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in _tensors(value)
    ]


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _is_in(tensor: torch.Tensor, others: Sequence[torch.Tensor]) -> bool:
    return any(tensor is other for other in others)


def _distinct(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _bytes(tensor: torch.Tensor) -> int:
    """Return a tensor's size in memory; an expanded tensor stores fewer values than its shape has elements."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _flops(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    packet = func._overloadpacket
    if packet is aten.convolution:
        return _convolution(args[0], args[1], out, transposed=args[6])
    if packet is aten.convolution_backward:
        # Both gradients are sums of the same products. torch's formula ignores the groups of a convolution.
        gradients = sum(bool(required) for required in args[10][:2])
        return gradients * _convolution(args[1], args[2], args[0], transposed=args[7])
    formula = flop_registry.get(packet)
    return int(formula(*args, **kwargs, out_val=out)) if formula is not None else 0


def _convolution(image: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, transposed: bool) -> int:
    """Return the operations of a convolution; its weight is (out, in / groups, …), transposed (in, out / groups, …)."""
    positions = image if transposed else out
    return 2 * positions.numel() * math.prod(weight.shape[1:])
