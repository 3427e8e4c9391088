"""Costs of the host for the prediction part of `benchmarks.host_costs`."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch

from benchmarks.common import FilmSet
from benchmarks.host_cost import HostCost, least_ms
from benchmarks.inference import noise_film
from pneumo_dist.config.ensemble import TtaConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.maps.store import film_facts, write_block
from pneumo_dist.network.build import build_model
from pneumo_dist.predict.encoded import EncodedFilm, _packed, _unpacked, encode_films
from pneumo_dist.predict.ensemble import Ensemble, EnsembleNetwork, NetworkInput, TrainedNetwork
from pneumo_dist.predict.forward import NetworkCache, PredictedFilms
from pneumo_dist.predict.predict import PredictOptions, predict
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.scoring.arrays import Map
from shards.dataset.table import Shards

NETWORKS, BLOCKS, PER_BLOCK = 15, 22, 2
BATCH, SIZE, RANKS = 16, 1024, 8


def costs(work: Path) -> list[HostCost]:
    """Measure the part; `work` keeps films and shards."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    shards = Shards(FilmSet(films=2 * BLOCKS * PER_BLOCK, size=64).shards(work, folds=2))
    maps = {size: np.stack([_map(number, size) for number in range(BATCH)]) for size in (SIZE // 2, SIZE)}
    films = encode_films(_predicted(maps[SIZE]))
    sent = len(_packed(films)) / BATCH
    main = least_ms(lambda: [np.concatenate([maps[SIZE][:0], maps[SIZE]]), _packed(films)])
    main += RANKS * least_ms(lambda: _unpacked(_packed(films)))
    # Before, every rank received the maps, and rank 0 encoded and stored those of all ranks on its main thread.
    rows = [
        HostCost(
            "prediction", f"{NETWORKS} networks, {BLOCKS} blocks", "loads a rank", "330", _loads(shards), NETWORKS
        ),
        HostCost("prediction", f"sent for a film of {SIZE} px", "kB", "1049", sent / 1e3, 30),
        HostCost("prediction", f"a film on rank 0 of {RANKS}, main thread", "ms", "27", main / BATCH, 2),
    ]
    for size, stack in maps.items():
        encoding = least_ms(partial(encode_films, _predicted(stack))) / BATCH
        rows.append(HostCost("prediction", f"encoding a film of {size} px, in a thread", "ms", "0", encoding))
    writing = _writing_ms(shards, films)
    return [
        *rows,
        HostCost("prediction", "storing a film, in a thread of rank 0", "ms", "0", writing),
    ]


def _predicted(maps: Map) -> PredictedFilms:
    return PredictedFilms(np.arange(len(maps)), maps, np.full(len(maps), np.nan))


def _map(number: int, size: int) -> Map:
    """Return a p8 map as a trained network gives: mostly certain, with a blob in every fourth."""
    film, _ = noise_film(number)
    return np.asarray(cv2.resize(np.where(film < 60, 0, film).astype(np.uint8), (size, size)), np.uint8)


def _writing_ms(shards: Shards, films: Sequence[EncodedFilm]) -> float:
    facts = [film_facts(shards, film.row) for film in films]
    with tempfile.TemporaryDirectory() as folder:
        content = [({**each, "class_probability": None}, film.content) for each, film in zip(facts, films, strict=True)]
        return least_ms(lambda: write_block(Path(folder) / "pred-00000.tar", content)) / len(films)


def _loads(shards: Shards) -> int:
    """Predict with small networks and return how many of them are loaded."""
    model = ModelConfig.model_validate({"arch": "fcn", "in_channels": 1, "fcn": {"widths": (4, 4, 8)}})

    def read() -> TrainedNetwork:
        # No lineage: it was not trained on any film.
        return TrainedNetwork(model, build_model(model, pretrained=False).state_dict(), "float32", ())

    network_input = NetworkInput(64, 1, (0.5,) * 3, (0.5,) * 3)
    networks = tuple(EnsembleNetwork(f"n{n}", n, 0, 1.0, network_input, model, read) for n in range(NETWORKS))
    ensemble = Ensemble("e", networks, 64, DataConfig(loader="torch", threads=1), 2, TtaConfig(hflip=False))
    load, loads = NetworkCache._load, 0

    def counted(cache: NetworkCache, network: EnsembleNetwork) -> object:
        nonlocal loads
        loads += 1
        return load(cache, network)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(NetworkCache, "_load", counted):
        predict(ensemble, shards, Path(folder), Ranks.alone(), PredictOptions("oof", (0,), PER_BLOCK))
        blocks = len(list(Path(folder).glob("pred-*.tar")))
    assert blocks >= BLOCKS, blocks
    return loads
