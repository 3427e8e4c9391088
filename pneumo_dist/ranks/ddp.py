"""DistributedDataParallel that sums gradients in the same order after a resume."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from pneumo_dist.ranks.buffers import KeptBuffers
from pneumo_dist.ranks.precision import Resolved, autocast
from pneumo_dist.ranks.ranks import Ranks


def wrap_ddp(model: torch.nn.Module, ranks: Ranks, example: torch.Tensor, amp: Resolved) -> torch.nn.Module:
    """Wrap a model in DDP and run one discarded pass over `example` (n, channels, h, w). A single rank is not wrapped.

    DDP rebuilds its buckets after the first step. With three ranks or more, that changes the order in which gradients
    are summed, so a resumed run must be past that point before its first step. Buffers and gradients are restored.

    Parameters that no output depends on no longer require a gradient. DDP would wait for them.
    """
    if ranks.control is None:
        return model
    # `forward` is not compiled. torch.compile must see the model inside DDP first: it then splits the graph where
    # buckets end, so that gradients are reduced during the backward pass.
    _discarded_pass(model.forward, model, ranks, example, amp)
    for parameter in model.parameters():
        if parameter.grad is None:
            # For example, scSE attention in a decoder block without a skip connection.
            parameter.requires_grad_(False)
    model.zero_grad(set_to_none=True)
    network = DistributedDataParallel(
        model, device_ids=None if ranks.device_id is None else [ranks.device_id], gradient_as_bucket_view=True
    )
    _discarded_pass(network, model, ranks, example, amp)
    model.zero_grad(set_to_none=True)
    return network


def _discarded_pass(
    network: Callable[[torch.Tensor], Any], model: torch.nn.Module, ranks: Ranks, example: torch.Tensor, amp: Resolved
) -> None:
    """Run forward and backward for the gradients only; restore the buffers."""
    buffers = KeptBuffers(model)
    buffers.keep()
    with autocast(amp, ranks.device):
        outputs = network(example)
    # A classifier has None in the place of the map.
    parts = [part for part in (outputs if isinstance(outputs, tuple) else (outputs,)) if part is not None]
    torch.autograd.backward(torch.stack([part.float().sum() for part in parts]).sum())
    buffers.restore()
