"""Recompute batch-norm statistics, which averaged weights lack.

After Izmailov and others, "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018. The result is
that of torch.optim.swa_utils.update_bn in one process, but for any number of ranks and with dropout off.
"""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from pneumo_dist.data.films import Batch
from pneumo_dist.ranks.precision import Resolved, autocast
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.watchdog import STATISTICS
from shards.errors import InputError

# After means and variances, a layer's row holds two counts: its calls, and its calls with a variance.
_COUNTS = 2


def recompute_statistics(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    ranks: Ranks,
    amp: Resolved,
    check: Callable[[], object] = lambda: None,
) -> None:
    """Set every batch norm's statistics to their mean over batches of films; leave the model in evaluation mode.

    Means and unbiased variances are averaged in float64 in the order of the batches, and each batch counts the same, so
    1, 2 and 4 ranks get the same bits. Films that only fill up a batch do not count. Neither does a call with one value
    per channel, which has no variance. A model without batch norm reads no film.

    Args:
        model: The model to update, on the ranks' device.
        batches: This rank's share of fixed batches, dealt to the ranks in turn as `eval_loader` deals them.
        ranks: The ranks that work together.
        amp: Autocast type of the model.
        check: Called before every batch, equally often on every rank. It may raise on all of them to stop.

    Raises:
        InputError: A layer had one value per channel in every batch.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
    layers = {name: layer for name, layer in layers.items() if layer.track_running_stats}
    if not layers:
        return
    model.eval()
    total = np.zeros(sum(map(_width, layers.values())))
    remaining = iter(batches)
    while True:
        ranks.beat(STATISTICS)
        check()
        batch = next(remaining, None)
        rows = ranks.gather_array(np.zeros(0) if batch is None else _measure(model, layers, batch, ranks, amp))
        if not any(map(len, rows)):
            break
        # The batches of a turn are in rank order, and turns follow each other: this is the order of the batches.
        for row in filter(len, rows):
            total += row
    _write(layers, total)


def _width(layer: _BatchNorm) -> int:
    return 2 * layer.num_features + _COUNTS


@torch.no_grad()
def _measure(
    model: torch.nn.Module, layers: dict[str, _BatchNorm], batch: Batch, ranks: Ranks, amp: Resolved
) -> npt.NDArray[np.float64]:
    """Return the concatenated float64 rows of all layers for one batch."""
    rows = [torch.zeros(_width(layer), dtype=torch.float64, device=ranks.device) for layer in layers.values()]
    hooks = [
        layer.register_forward_pre_hook(partial(_use_batch_statistics, row))
        for layer, row in zip(layers.values(), rows, strict=True)
    ]
    images = batch.images[: len(batch.indices)].to(ranks.device, torch.float32, non_blocking=True)
    try:
        with autocast(amp, ranks.device):
            model.forward(images)  # the eager model: a compiled one would ignore the hooks
    finally:
        for hook in hooks:
            hook.remove()
    return np.asarray(torch.cat(rows).cpu().numpy())


def _use_batch_statistics(row: torch.Tensor, layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Make a layer in evaluation mode normalise by the statistics of its input, as in training; add them to `row`.

    Training mode itself would switch dropout on, and SyncBatchNorm would mix batches of different ranks.
    """
    assert isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None
    values = inputs[0].to(layer.running_mean.dtype)
    variance, mean = torch.var_mean(values, [axis for axis in range(values.dim()) if axis != 1], correction=0)
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)
    count = values.numel() // layer.num_features
    row[-2] += 1
    if count > 1:
        unbiased = variance.double() * (count / (count - 1))
        row += torch.cat([mean.double(), unbiased, row.new_tensor([0.0, 1.0])])


def _write(layers: dict[str, _BatchNorm], total: npt.NDArray[np.float64]) -> None:
    """Set the layers' statistics to their means, and their number of batches."""
    rows = np.split(total, np.cumsum([_width(layer) for layer in layers.values()])[:-1])
    for (name, layer), row in zip(layers.items(), rows, strict=True):
        calls, counted = row[-_COUNTS:].tolist()
        if calls and not counted:
            raise InputError(
                f"batch norm {name}: every batch has one value per channel, which has no variance; raise eval_batch"
            )
        if not calls:
            continue
        assert layer.running_mean is not None and layer.running_var is not None
        assert layer.num_batches_tracked is not None
        mean, variance = torch.from_numpy(row[:-_COUNTS] / counted).chunk(2)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
        layer.num_batches_tracked.fill_(int(counted))
