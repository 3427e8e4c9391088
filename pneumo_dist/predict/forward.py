"""Predict films with networks that take turns, so that few of them are in memory at a time."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pneumo_dist.data.films import Batch
from pneumo_dist.data.plan import Indices
from pneumo_dist.predict.ensemble import Ensemble, EnsembleNetwork, shares
from pneumo_dist.predict.tta import mean_view
from pneumo_dist.ranks.precision import Resolved, resolve_amp
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.watchdog import PREDICTION
from pneumo_dist.runs.lineage import check_unseen
from pneumo_dist.scoring.masks import to_p8
from shards.dataset.table import Shards
from shards.errors import InputError


@dataclass(frozen=True)
class PredictedFilms:
    """Predicted films: table rows int64 (n,), maps uint8 (n, size, size), class probabilities float64 (n,) or nan."""

    rows: Indices
    maps: npt.NDArray[np.uint8]
    classes: npt.NDArray[np.float64]


def predict_films(
    batches: Sequence[Batch], networks: Sequence[EnsembleNetwork], cache: "NetworkCache"
) -> PredictedFilms:
    """Predict this rank's films of a block; the networks take turns, each over all of the films."""
    device, size = cache.ranks.device, cache.ensemble.image_size
    images = [batch.images.to(device, torch.float32, non_blocking=True) for batch in batches]
    sums = [torch.zeros(len(each), 1, size, size, device=device) for each in images]
    classes = [torch.zeros(len(each), device=device) for each in images]
    heads = 0.0
    for network, share in zip(networks, shares(networks), strict=True):
        if not images:
            break
        model, amp = cache(network)
        for number, each in enumerate(images):
            cache.ranks.beat(PREDICTION)
            maps, head = mean_view(model, each, cache.ensemble.tta, amp)
            sums[number] += share * maps
            if head is not None:
                classes[number] += share * head
        heads += share if head is not None else 0.0
    _check_finite([*sums, *classes], networks)
    counts = [len(batch.indices) for batch in batches]
    return PredictedFilms(
        np.concatenate([np.zeros(0, np.int64), *(batch.indices for batch in batches)]),
        np.concatenate(
            [np.zeros((0, size, size), np.uint8), *(to_p8(s)[:n] for s, n in zip(sums, counts, strict=True))]
        ),
        np.concatenate(
            [
                np.zeros(0),
                *(
                    (c[:n].double() / heads if heads else c[:n] * np.nan).cpu().numpy()
                    for c, n in zip(classes, counts, strict=True)
                ),
            ]
        ),
    )


def _check_finite(sums: Sequence[torch.Tensor], networks: Sequence[EnsembleNetwork]) -> None:
    """Raise InputError for values that are not finite: they would be rounded to 'no pneumothorax'."""
    if not all(bool(torch.isfinite(each).all()) for each in sums):
        more = f" or one of {len(networks) - 1} more" if len(networks) > 1 else ""
        raise InputError(
            f"{networks[0].name}{more}: gives values that are not finite numbers; its weights are damaged or too large "
            "for its precision (amp: float32)"
        )


def gather_films(mine: PredictedFilms, ranks: Ranks) -> PredictedFilms:
    """Return the films of all ranks in table order."""
    rows, maps, classes = (
        np.concatenate(ranks.gather_array(values)) for values in (mine.rows, mine.maps, mine.classes)
    )
    order = np.argsort(rows, kind="stable")
    return PredictedFilms(rows[order], maps[order], classes[order])


class NetworkCache:
    """At most `size` networks on this rank's device; the least recently used makes room for the next.

    With `unseen`, networks that have seen their fold of these shards are refused.
    """

    def __init__(self, ensemble: Ensemble, ranks: Ranks, size: int, unseen: Shards | None) -> None:
        self.ensemble, self.ranks = ensemble, ranks
        self._size, self._unseen = size, unseen
        self._held: OrderedDict[str, tuple[torch.nn.Module, Resolved]] = OrderedDict()

    def __call__(self, network: EnsembleNetwork) -> tuple[torch.nn.Module, Resolved]:
        """Return a network on the device and its autocast type. Raises InputError if it has seen films of the split."""
        if network.name not in self._held:
            while len(self._held) >= self._size:
                self._held.popitem(last=False)
            self._held[network.name] = self._load(network)
        self._held.move_to_end(network.name)
        return self._held[network.name]

    def _load(self, network: EnsembleNetwork) -> tuple[torch.nn.Module, Resolved]:
        trained, device = network.read(), self.ranks.device
        if self._unseen is not None:
            check_unseen(trained.lineage, network.name, self._unseen, network.fold)
        amp = trained.amp if self.ensemble.amp is None else resolve_amp(self.ensemble.amp, device)
        if amp == "fp16" and device.type == "cpu":
            amp = "float32"  # CPUs do not compute in float16
        return trained.build(network.name).to(device), amp
