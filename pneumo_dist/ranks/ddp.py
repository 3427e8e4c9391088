"""DDP, wrapped so that a resumed run adds in the order of one that was never interrupted."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from pneumo_dist.ranks.precision import Resolved, autocast
from pneumo_dist.ranks.ranks import Ranks


def wrap_ddp(model: torch.nn.Module, ranks: Ranks, example: torch.Tensor, amp: Resolved) -> torch.nn.Module:
    """Wrap a model in DDP and run one discarded pass over `example` (n, channels, h, w); alone, return the model.

    DDP rebuilds its buckets after its first step, which changes the order of sums from three ranks on: a resumed run
    must be past that point when it begins, as an uninterrupted one is. Buffers and gradients are put back. Parameters
    that no output depends on, which DDP would wait for, stop to ask for a gradient.
    """
    if ranks.control is None:
        return model
    # The eager one: where torch.compile sees the model for the first time inside DDP, it cuts the graph where buckets
    # end, so that gradients are reduced beside the backward pass.
    _discarded_pass(model.forward, model, ranks, example, amp)
    for parameter in model.parameters():
        if parameter.grad is None:
            # As scSE's in a decoder block that has no skip connection.
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
    """Run forward and backward for the gradients alone; buffers are put back."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    with autocast(amp, ranks.device):
        outputs = network(example)
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.backward(torch.stack([part.float().sum() for part in parts]).sum())
    put_back(model, buffers)


@torch.no_grad()
def put_back(model: torch.nn.Module, buffers: list[torch.Tensor]) -> None:
    """Restore a model's buffers from copies."""
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
