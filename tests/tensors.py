"""Comparison of weights."""

from collections.abc import Mapping

import torch


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor] | None) -> bool:
    """Return whether both have the same tensors, equal in value, in the same order."""
    return other is not None and list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
