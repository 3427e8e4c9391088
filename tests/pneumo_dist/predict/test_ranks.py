"""Several ranks predict: equal files, one load of each network, only encoded maps, and only to rank 0."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import phantom_shards
from threaded_ranks import Exchange, on_ranks

from pneumo_dist.config.ensemble import TtaConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.data.films import Batch, FilmReader, FilmRequest
from pneumo_dist.data.plan import Indices
from pneumo_dist.data.torch_loader import Films
from pneumo_dist.maps.store import Predictions, write_block
from pneumo_dist.network.build import build_model
from pneumo_dist.predict import forward
from pneumo_dist.predict import predict as prediction
from pneumo_dist.predict.ensemble import Ensemble, EnsembleNetwork, NetworkInput, TrainedNetwork
from pneumo_dist.predict.forward import NetworkCache
from pneumo_dist.predict.memory import batch_bytes, network_bytes
from pneumo_dist.predict.predict import PARTS, PredictOptions, predict
from pneumo_dist.ranks.ranks import Ranks
from shards.dataset.table import Shards

NETWORKS = 3
BLOCK, BATCH = 8, 2


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Forty phantom films, twenty in each of two folds."""
    return phantom_shards(tmp_path_factory.mktemp("forty"), films=40, size=64)


def networks() -> tuple[EnsembleNetwork, ...]:
    """Networks of fixed random weights and two inputs, which have seen no film."""

    def network(number: int) -> EnsembleNetwork:
        model = ModelConfig.model_validate({"arch": "fcn", "in_channels": 1, "fcn": {"widths": (16, 32, 32)}})

        def read() -> TrainedNetwork:
            built = build_model(model, pretrained=False)
            chance = torch.Generator().manual_seed(number)
            weights = {
                name: torch.randn(value.shape, generator=chance) / 3 for name, value in built.state_dict().items()
            }
            return TrainedNetwork(model, weights, "float32", ())

        network_input = NetworkInput(32 if number else 64, 1, (0.2,) * 3, (0.5,) * 3)
        return EnsembleNetwork(f"n{number}", number, 0, 1.0 + number, network_input, model, read)

    return tuple(map(network, range(NETWORKS)))


ENSEMBLE = Ensemble("e", networks(), 32, DataConfig(loader="torch"), BATCH, TtaConfig())


def simple_batches(reader: FilmReader, batches: Iterable[Indices], batch: int) -> Iterator[Batch]:
    """The films of `eval_batches`, read by this thread."""
    films = Films(reader)
    for rows in batches:
        full = [*rows.tolist(), *[int(rows[-1])] * (batch - len(rows))]
        yield Batch(torch.stack([films[FilmRequest(row)][0] for row in full]), torch.zeros(0), rows)


class Counts:
    """Loads of networks and forward passes of each rank."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.loads: Counter[tuple[int, str]] = Counter()
        self.passes: Counter[int] = Counter()
        load, add = NetworkCache._load, forward._add

        def noted_load(cache: NetworkCache, network: EnsembleNetwork) -> Any:
            self.loads[cache.ranks.rank, network.name] += 1
            return load(cache, network)

        def noted_add(sums: Any, images: Any, chosen: Any, cache: NetworkCache) -> None:
            self.passes[cache.ranks.rank] += len(images) * len(chosen)
            add(sums, images, chosen, cache)

        patch.setattr(NetworkCache, "_load", noted_load)
        patch.setattr(forward, "_add", noted_add)
        patch.setattr(prediction, "eval_batches", simple_batches)


def predicted(shards: Shards, folder: Path, world: int, **options: Any) -> tuple[Exchange, dict[str, bytes]]:
    """Predict fold 0 on some ranks; return their messages and the files, by name."""

    def work(ranks: Ranks) -> None:
        predict(ENSEMBLE, shards, folder, ranks, PredictOptions("oof", (0,), BLOCK, **options))

    _, exchange = on_ranks(world, work)
    files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return exchange, files


def test_files_are_equal_on_any_number_of_ranks(many: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts(monkeypatch)
    _, alone = predicted(many, tmp_path / "1", 1)
    assert len(Predictions(tmp_path / "1")) == 20 and len(alone) == 3 * 2 + 2
    assert counts.loads == {(0, f"n{number}"): 1 for number in range(NETWORKS)}
    for world in (2, 4, 8):
        counts.loads.clear()
        counts.passes.clear()
        exchange, files = predicted(many, tmp_path / str(world), world)
        assert files == alone
        # Ten batches of two films, by three networks.
        assert {rank: counts.passes[rank] for rank in range(world)} == {
            rank: NETWORKS * len(range(rank, 10, world)) for rank in range(world)
        }
        assert counts.loads == {(rank, f"n{number}"): 1 for rank in range(world) for number in range(NETWORKS)}
        stored = sum(row["size"] for row in Predictions(tmp_path / str(world)).rows)
        assert exchange.received[0] < stored + 20 * 24 + world * 8 + world * 200
        assert max(exchange.received[1:]) <= world * 200, "free memory alone"


@pytest.mark.parametrize(("world", "spans"), [(1, 3), (2, 3), (4, 2), (8, 1)])
def test_networks_that_do_not_fit_are_loaded_once_for_each_span(
    many: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int, spans: int
) -> None:
    counts = Counts(monkeypatch)
    _, alone = predicted(many, tmp_path / "fits", 1)
    counts.loads.clear()
    # Each rank has memory for a network and two batches. The blocks have four, four and two batches.
    free = 2 * (max(network_bytes(networks())) + 2 * batch_bytes(ENSEMBLE))
    monkeypatch.setattr(prediction, "free_bytes", lambda _: free)
    monkeypatch.setattr(prediction, "ROUNDS", 2)
    _, files = predicted(many, tmp_path / "small", world)
    assert files == alone
    assert [counts.loads[0, f"n{number}"] for number in range(NETWORKS)] == [spans] * NETWORKS
    assert max(counts.loads.values()) == spans
    _, limited = predicted(many, tmp_path / "limited", world, models=1)
    assert limited == alone


def test_killed_prediction_keeps_its_finished_blocks(
    many: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Counts(monkeypatch)
    monkeypatch.setattr(prediction, "ROUNDS", 1)
    _, whole = predicted(many, tmp_path / "whole", 2)
    written: list[str] = []

    def sometimes(path: Path, films: Any) -> Any:
        if len(written) == 2 and path.parent.name == "cut":
            written.append("stopped")
            raise OSError(28, "No space left on device", str(path))
        written.append(path.name)
        return write_block(path, films)

    monkeypatch.setattr(prediction, "write_block", sometimes)
    with pytest.raises(OSError, match="No space left"):
        predicted(many, tmp_path / "cut", 2)
    kept = {path.name for path in (tmp_path / "cut").rglob("pred-*")}
    assert kept == {f"pred-0000{number}.{kind}" for number in range(2) for kind in ("tar", "json")}
    assert sorted(path.name for path in (tmp_path / "cut" / PARTS).iterdir()) == ["pred-00000.json", "pred-00001.json"]
    kept_bytes = {name: (tmp_path / "cut" / name).stat().st_ino for name in ("pred-00000.tar", "pred-00001.tar")}
    written.append("resumed")
    _, files = predicted(many, tmp_path / "cut", 4)
    assert files == whole and written[-2:] == ["resumed", "pred-00002.tar"]
    assert {name: (tmp_path / "cut" / name).stat().st_ino for name in kept_bytes} == kept_bytes
    assert np.unique([row["tar"] for row in Predictions(tmp_path / "cut").rows]).tolist() == [
        f"pred-0000{number}.tar" for number in range(3)
    ]
