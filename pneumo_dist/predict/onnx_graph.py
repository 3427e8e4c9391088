"""An ensemble as one module, from grey films to averaged probabilities, and the metadata of its ONNX graph."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from pneumo_dist import __version__
from pneumo_dist.predict.ensemble import Ensemble, NetworkInput, map_shares, shares
from pneumo_dist.predict.tta import mean_of_views
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.stored import rule_content

FILM, PROBABILITY, CLASS_PROBABILITY = "film", "probability", "class_probability"
FORMAT, FORMAT_VERSION = "pneumo_dist-onnx", 1


class EnsembleGraph(torch.nn.Module):
    """The networks of an ensemble in float32, with all that predict does between a square film and a map.

    Maps uint8 films (n, side, side), where side is the ensemble's `film_size`, to probabilities float32
    (n, image_size, image_size) and, with a classification head, class probabilities float32 (n,).
    """

    def __init__(self, ensemble: Ensemble, networks: Iterable[torch.nn.Module]) -> None:
        super().__init__()
        self._views = [network.tta or ensemble.tta for network in ensemble.networks]
        self._side = ensemble.image_size
        self._shares = [*zip(map_shares(ensemble.networks), shares(ensemble.networks), strict=True)]
        self._input_of = [ensemble.inputs.index(network.input) for network in ensemble.networks]
        self.inputs = torch.nn.ModuleList([_Input(each, ensemble.film_size) for each in ensemble.inputs])
        self.networks = torch.nn.ModuleList(networks)
        self.has_head = any(network.model.classification for network in ensemble.networks)

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return [PROBABILITY, CLASS_PROBABILITY] if self.has_head else [PROBABILITY]

    def forward(self, films: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Predict films. The sums have the order of `predict_films`: by input, then by network."""
        images = [each(films) for each in self.inputs]
        maps = torch.zeros(films.shape[0], 1, self._side, self._side)
        classes, heads = torch.zeros(films.shape[0]), 0.0
        for number in sorted(range(len(self.networks)), key=self._input_of.__getitem__):
            map_share, share = self._shares[number]
            own = images[self._input_of[number]]
            views, head = mean_of_views(self.networks[number], own, self._views[number], "float32", self._side)
            if views is not None:
                maps = maps + map_share * views
            if head is not None:
                classes, heads = classes + share * head, heads + share
        return (maps.squeeze(1), classes / heads) if heads else (maps.squeeze(1),)


class _Input(torch.nn.Module):
    """Turns films into a network's input: resizes as `data.resample` does, then normalises."""

    low: torch.Tensor
    high: torch.Tensor
    weight: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network_input: NetworkInput, film_size: int) -> None:
        super().__init__()
        self._is_resized = network_input.image_size != film_size
        step = film_size / network_input.image_size
        # OpenCV computes these positions in float32.
        positions = np.arange(network_input.image_size, dtype=np.float32) * np.float32(step) + np.float32(
            step / 2 - 0.5
        )
        low = np.floor(positions).astype(np.int64)
        self.register_buffer("low", torch.from_numpy(low))
        self.register_buffer("high", torch.from_numpy(np.minimum(low + 1, film_size - 1)))
        self.register_buffer("weight", torch.from_numpy(positions - low.astype(np.float32)))
        for name, values in (("mean", network_input.mean), ("std", network_input.std)):
            levels = np.array(values[: network_input.in_channels], np.float32) * np.float32(255)
            self.register_buffer(name, torch.from_numpy(levels)[None, :, None, None])

    def forward(self, films: torch.Tensor) -> torch.Tensor:
        """Return float32 (n, channels, size, size) for uint8 films (n, side, side)."""
        grey = films.float()
        if self._is_resized:
            rows = _between(grey[:, self.low], grey[:, self.high], self.weight[:, None])
            grey = _between(rows[:, :, self.low], rows[:, :, self.high], self.weight).round()
        return (grey[:, None] - self.mean) / self.std


def _between(low: torch.Tensor, high: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return low + weight * (high - low)


def metadata(ensemble: Ensemble, rule: Rule, card: str) -> Mapping[str, str]:
    """Return the model's metadata: what the graph leaves to its user, as JSON, and the model card."""
    preprocessing: dict[str, Any] = {
        "side": ensemble.film_size,
        "grey": "8 bits, air is dark",
        "fit": "centred in the square, aspect ratio kept; sides rounded to pixels",
        "shrink": "area",
        "enlarge": "cubic",
        "padding": 0,
    }
    return {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "version": __version__,
        "name": ensemble.name,
        "preprocessing": json.dumps(preprocessing),
        "rule": json.dumps(rule_content(rule)),
        "networks": json.dumps([network.name for network in ensemble.networks]),
        "model_card": card,
    }
