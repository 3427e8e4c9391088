"""Predict films with networks that take turns, so that few of them are in memory at a time."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pneumo_dist.data.films import Batch
from pneumo_dist.data.plan import Indices
from pneumo_dist.predict.ensemble import Ensemble, EnsembleNetwork, NetworkInput, distinct_inputs, map_shares, shares
from pneumo_dist.predict.tta import mean_view
from pneumo_dist.ranks.precision import Resolved, resolve_amp
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.watchdog import PREDICTION
from pneumo_dist.runs.lineage import check_unseen
from pneumo_dist.scoring.rounding import to_levels
from shards.dataset.table import Shards
from shards.errors import InputError


@dataclass(frozen=True)
class PredictedFilms:
    """Predicted films: table rows int64 (n,), maps uint8 (n, size, size), class probabilities float64 (n,) or nan.

    Without a segmenter, the size of the maps is 0.
    """

    rows: Indices
    maps: npt.NDArray[np.uint8]
    classes: npt.NDArray[np.float64]


@dataclass(frozen=True)
class LaunchedFilms:
    """Predicted films that a GPU may still be computing.

    Attributes:
        rows: Table rows, int64 (n,).
        maps: Maps of each batch, uint8 (count, size, size), on the device.
        classes: Class probabilities of each batch, float64 (count,), on the device; nan without a head.
        are_finite: Whether the sums that maps and classes come from are finite, bool () each, on the device.
        names: Names of the networks.
    """

    rows: Indices
    maps: list[torch.Tensor]
    classes: list[torch.Tensor]
    are_finite: list[torch.Tensor]
    names: tuple[str, ...]

    def on_host(self) -> PredictedFilms:
        """Wait for the device and return the films.

        Raises InputError for values that are not finite: they would be rounded to 'no pneumothorax'.
        """
        if not all(map(bool, self.are_finite)):
            more = f" or one of {len(self.names) - 1} more" if len(self.names) > 1 else ""
            raise InputError(
                f"{self.names[0]}{more}: gives values that are not finite numbers; its weights are damaged or too "
                "large for its precision (amp: float32)"
            )
        maps = np.concatenate([each.cpu().numpy() for each in self.maps])
        classes = np.concatenate([np.zeros(0), *(each.cpu().numpy() for each in self.classes)])
        return PredictedFilms(self.rows, maps, classes)


@dataclass
class _Sums:
    """Sums over networks: maps (n, 1, size, size) and class probabilities (n,) of each batch, and the heads' shares."""

    maps: list[torch.Tensor]
    classes: list[torch.Tensor]
    heads: float = 0.0


def predict_films(
    batches: Sequence[Indices],
    films: Mapping[NetworkInput, Iterator[Batch]],
    networks: Sequence[EnsembleNetwork],
    cache: "NetworkCache",
) -> LaunchedFilms:
    """Predict batches of films, which are held in memory until all networks have predicted them.

    The inputs take turns, so that the films of only one are in memory, and for each input its networks take turns. A
    map has the same bits however many batches are predicted together. The host does not wait for the device.

    Args:
        batches: The table rows of each batch.
        films: For each input, an iterator whose next batches are these.
        networks: The networks that predict.
        cache: The networks in memory.
    """
    device, size = cache.ranks.device, cache.ensemble.image_size if cache.ensemble.has_maps else 0
    sums = _Sums(
        [torch.zeros(len(rows), 1, size, size, device=device) for rows in batches],
        [torch.zeros(len(rows), device=device) for rows in batches],
    )
    for network_input in distinct_inputs(networks) if batches else ():
        chosen = [
            (network, map_share, share)
            for network, map_share, share in zip(networks, map_shares(networks), shares(networks), strict=True)
            if network.input == network_input
        ]
        _add(sums, _next_images(films[network_input], batches, device), chosen, cache)
    return LaunchedFilms(
        rows=np.concatenate([np.zeros(0, np.int64), *batches]),
        maps=[torch.zeros(0, size, size, dtype=torch.uint8), *map(to_levels, sums.maps)],
        classes=[each.double() / sums.heads if sums.heads else each * np.nan for each in sums.classes],
        are_finite=[torch.isfinite(each).all() for each in (*sums.maps, *sums.classes)],
        names=tuple(network.name for network in networks),
    )


def _next_images(films: Iterator[Batch], batches: Sequence[Indices], device: torch.device) -> list[torch.Tensor]:
    """Return the images of the next films, which must be those of the batches."""
    images: list[torch.Tensor] = []
    for rows in batches:
        batch = next(films)
        assert np.array_equal(batch.indices, rows), "other films"
        # A worker's batch takes an open file and a part of /dev/shm for as long as it is held.
        is_shared = batch.images.device.type == "cpu" and batch.images.is_shared()
        images.append(batch.images.to(device, torch.float32, non_blocking=True, copy=is_shared and len(batches) > 1))
    return images


def _add(
    sums: _Sums,
    images: Sequence[torch.Tensor],
    networks: Sequence[tuple[EnsembleNetwork, float, float]],
    cache: "NetworkCache",
) -> None:
    """Add the predictions of networks that take these images, each times its shares of maps and class probabilities.

    Images that only fill a batch do not count.
    """
    size = cache.ensemble.image_size
    for network, map_share, share in networks:
        model, amp = cache(network)
        tta = network.tta or cache.ensemble.tta
        for number, each in enumerate(images):
            cache.ranks.beat(PREDICTION)
            maps, head = mean_view(model, each, tta, amp, size)
            count = len(sums.maps[number])
            if maps is not None:
                sums.maps[number] += map_share * maps[:count]
            if head is not None:
                sums.classes[number] += share * head[:count]
        sums.heads += share if head is not None else 0.0


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
