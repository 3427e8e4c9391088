"""How many networks a rank holds, and how many batches of films: each network is loaded as rarely as memory allows."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from pneumo_dist.config.model import ModelConfig
from pneumo_dist.network.fit import checkpoint_bytes, meta_model
from pneumo_dist.predict.ensemble import Ensemble, EnsembleNetwork
from pneumo_dist.ranks.cpus import ranks_here
from pneumo_dist.ranks.processes import available_memory
from pneumo_dist.ranks.ranks import Ranks

# Share of the free memory for networks and films. The rest is for activations and prefetched films.
USABLE = 0.5
_FLOAT = 4


@dataclass(frozen=True)
class Held:
    """What a rank holds at a time: at most `networks` networks, and the films and sums of `batches` batches."""

    networks: int
    batches: int


def held_in_memory(free: int, networks: Sequence[int], batch: int, least: int, limit: int | None = None) -> Held:
    """Return what a rank holds of the networks that predict a film together.

    If all of them fit, each is loaded once, and batches follow each other. Otherwise one network at a time predicts as
    many batches as fit.

    Args:
        free: Free bytes.
        networks: Bytes of each network.
        batch: Bytes of a batch of films and of its sums.
        least: Least number of batches to hold if the networks do not fit.
        limit: Number of networks that the user allows, instead of what fits; None for no limit.
    """
    usable = int(free * USABLE)
    fits = sum(networks) + batch <= usable if limit is None else len(networks) <= limit
    if fits:
        return Held(len(networks), 1)
    return Held(1, max((usable - max(networks)) // batch, least))


def free_bytes(ranks: Ranks) -> int:
    """Return the free bytes of this rank's GPU, or its share of the host's on the CPU."""
    if ranks.device.type == "cuda":
        return int(torch.cuda.mem_get_info(ranks.device)[0])
    return available_memory() // ranks_here(os.environ)


def network_bytes(networks: Sequence[EnsembleNetwork]) -> list[int]:
    """Return the bytes of each network's weights in memory."""
    return [_model_bytes(network.model) for network in networks]


def batch_bytes(ensemble: Ensemble) -> int:
    """Return the bytes of a batch of films, for the largest input, and of the sums of its maps."""
    films = max(each.in_channels * each.image_size**2 for each in ensemble.inputs)
    if ensemble.data.image_dtype == "float16":
        films = films * 3 // 2  # a batch is held as it was read until all are converted
    return ensemble.eval_batch * _FLOAT * (films + ensemble.image_size**2)


@lru_cache
def _model_bytes(config: ModelConfig) -> int:
    return checkpoint_bytes(meta_model(config), copies=1)
