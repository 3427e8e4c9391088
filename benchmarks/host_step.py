"""Costs of the host for the step part of `benchmarks.host_costs`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.host_checkpoint import checkpoint_costs
from benchmarks.host_cost import HostCost, least_ms
from benchmarks.host_waits import counted_waits
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.films import Batch
from pneumo_dist.network.build import build_model
from pneumo_dist.network.sync_batch_norm import synchronised
from pneumo_dist.ranks.buffers import KeptBuffers
from pneumo_dist.ranks.precision import Resolved
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.train.optim import MovingAverage, make_optimizer
from pneumo_dist.train.step import Learner

ENCODERS = ("se_resnext50_32x4d", "se_resnext101_32x4d", "senet154")
# Waits of torch's SyncBatchNorm in a forward pass, of which there are three a layer.
TORCH_WAITS = ("189", "342", "501")
RANKS = 8
OPTIM = {"name": "adam", "lr": 1e-4, "clip_norm": 1.0, "ema_decay": 0.99}


def costs(work: Path) -> list[HostCost]:
    """Measure the part; `work` keeps films and shards."""
    torch.set_num_threads(1)
    rows = []
    for encoder, torch_waits in zip(ENCODERS, TORCH_WAITS, strict=True):
        model = one_element(smp.Unet(encoder, encoder_weights=None))
        average, buffers = MovingAverage(model, 0.99), KeptBuffers(model)
        network = f"U-Net {encoder}"
        reads = _reads_of_the_optimizer(model)
        norms = _waits_of_norms(encoder)
        rows += [
            HostCost("step", f"moving average, {network}", "ms", "8.7 to 15.1", least_ms(average.update, 20), 0.5),
            HostCost("step", f"copies of buffers, {network}", "ms", "1.2 to 3.1", least_ms(buffers.keep, 20), 0.2),
            HostCost("step", f"item() calls of the fused optimizer, {network}", "", "640 to 1,530", reads, 0),
            HostCost("step", f"waits of synchronised batch norm, {network}, forward", "", torch_waits, norms, 0),
        ]
    waits = [HostCost("step", f"waits of a step, {amp}", "", "2", _waits_of_a_step(amp), 1) for amp in ("bf16", "fp16")]
    return [*rows, *waits, *checkpoint_costs(work)]


def one_element(model: nn.Module) -> nn.Module:
    """Replace all tensors of a model by tensors of one element, so that only the overhead of each remains."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach().flatten()[:1].clone()))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.flatten()[0].clone() if buffer.dim() == 0 else buffer.flatten()[:1].clone())
    return model


def _reads_of_the_optimizer(model: nn.Module) -> int:
    """Return how often a step of the optimizer that GPUs use reads a value of a tensor."""
    stage = StageConfig.model_validate({"name": "main", "optim": OPTIM})
    optimizer = make_optimizer(model.parameters(), stage, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with counted_waits() as waits:
        optimizer.step()
    optimizer.zero_grad()
    return waits.count


def _waits_of_norms(encoder: str) -> int:
    """Return the waits in a forward pass of one of several ranks, whose other ranks are not there."""
    with _pretended_ranks():
        model = synchronised(smp.Unet(encoder, encoder_weights=None)).train()
        with counted_waits() as waits:
            model(torch.rand(2, 3, 64, 64))
    return waits.count


@contextmanager
def _pretended_ranks() -> Iterator[None]:
    """Join a group of ranks that do not exist: collectives return at once."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _waits_of_a_step(amp: str) -> int:
    """Return the waits of a whole optimizer step on one rank, with the optimizer that GPUs use."""
    experiment = Experiment.model_validate(
        {
            "name": "waits",
            "model": {"arch": "fcn", "in_channels": 1, "fcn": {"widths": (4, 8, 16), "norm": True}},
            "runtime": {"fused": True},
            "stages": [{"name": "main", "image_size": 64, "global_batch": 2, "micro_batch": 2, "optim": OPTIM}],
        }
    )
    ranks = Ranks.alone()
    resolved: Resolved = "fp16" if amp == "fp16" else "bf16"
    learner = Learner(experiment, experiment.stages[0], ranks, resolved, build_model(experiment.model, False))
    learner.start_epoch(0)
    batch = Batch(torch.rand(2, 1, 64, 64), torch.zeros(2, 1, 64, 64, dtype=torch.uint8), np.arange(2))
    step = partial(learner.step, [batch], 1, 0, lambda micro: None)
    step()
    with counted_waits() as waits:
        step()
    return waits.count
