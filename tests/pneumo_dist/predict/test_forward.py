"""Films are predicted by networks that take turns: their number in memory and the batches change nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import ALONE, Trained

from pneumo_dist.data.films import Batch, FilmReader
from pneumo_dist.data.loader import eval_batches
from pneumo_dist.data.plan import fixed_batches
from pneumo_dist.maps.store import Predictions
from pneumo_dist.predict import predict as prediction
from pneumo_dist.predict.ensemble import Ensemble, EnsembleNetwork, NetworkInput
from pneumo_dist.predict.forward import NetworkCache, PredictedFilms, predict_films
from pneumo_dist.predict.predict import PredictOptions, predict
from shards.errors import InputError

BOTH = [{"experiment": "plain", "weight": 3, "top_k": 1}, {"experiment": "head", "weight": 1}]


@pytest.mark.slow
def test_number_of_networks_in_memory_changes_nothing(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = trained.ensemble(members=BOTH)
    held: list[int] = []
    load = NetworkCache._load

    def noted(cache: Any, network: EnsembleNetwork) -> Any:
        held.append(len(cache._held) + 1)
        return load(cache, network)

    monkeypatch.setattr(NetworkCache, "_load", noted)
    digests = set()
    # All networks fit. Three blocks of one batch each: first the memory holds them together, then one at a time.
    for models, free, rounds, expected in (
        (None, 10**10, 8, [1, 2, 3, 4, 5, 6]),
        (6, 0, 8, [1, 2, 3, 4, 5, 6]),
        (1, 10**10, 8, [1] * 6),
        (None, 0, 8, [1] * 6 * 3),
        (1, 0, 1, [1] * 6 * 3),
    ):
        monkeypatch.setattr(prediction, "free_bytes", lambda _, free=free: free)
        monkeypatch.setattr(prediction, "ROUNDS", rounds)
        folder = tmp_path / f"{models}-{free}-{rounds}"
        predict(ensemble, trained.shards, folder, ALONE, PredictOptions("test", block=2, models=models))
        assert held == expected
        held.clear()
        digests.add(Predictions(folder).digest)
    assert len(digests) == 1


def predicted(trained: Trained, ensemble: Ensemble, batch: int) -> PredictedFilms:
    batches = fixed_batches(trained.shards.indices("test"), batch)
    (only,) = ensemble.inputs
    reader = FilmReader(trained.shards, ensemble.input_spec(only, ALONE), with_mask=False)
    films = {only: eval_batches(reader, batches, batch)}
    return predict_films(batches, films, ensemble.networks, NetworkCache(ensemble, ALONE, 2, None)).on_host()


def test_films_that_fill_up_a_batch_do_not_count(trained: Trained) -> None:
    ensemble = trained.ensemble(members=BOTH)
    whole, filled = (predicted(trained, ensemble, batch) for batch in (5, 3))
    assert whole.rows.tolist() == filled.rows.tolist() == trained.shards.indices("test").tolist()
    assert np.abs(whole.maps.astype(int) - filled.maps).max() <= 1
    np.testing.assert_allclose(whole.classes, filled.classes, atol=1e-5)


def test_no_batches_and_no_head_are_empty_arrays_and_nan(trained: Trained) -> None:
    ensemble = trained.ensemble()
    none = predict_films([], {}, ensemble.networks, NetworkCache(ensemble, ALONE, 1, None)).on_host()
    assert (none.rows.shape, none.maps.shape, none.classes.shape) == ((0,), (0, 64, 64), (0,))
    assert np.isnan(predicted(trained, ensemble, 5).classes).all()


def test_films_of_an_input_are_read_when_its_networks_have_their_turn(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [{"experiment": name, "folds": [0], "top_k": 1} for name in ("plain", "other", "head")]
    ensemble = trained.ensemble(members=members, eval_batch=2)
    events: list[str] = []
    load = NetworkCache._load

    def noted(cache: Any, network: EnsembleNetwork) -> Any:
        events.append(network.name.split("/")[0])
        return load(cache, network)

    def films(each: NetworkInput) -> Iterator[Batch]:
        for rows in (np.array([4, 6]), np.array([5])):
            events.append(f"{each.image_size} px")
            yield Batch(torch.zeros(2, each.in_channels, each.image_size, each.image_size), torch.zeros(0), rows)

    monkeypatch.setattr(NetworkCache, "_load", noted)
    batches = [np.array([4, 6]), np.array([5])]
    cache = NetworkCache(ensemble, ALONE, 4, None)
    launched = predict_films(batches, {each: films(each) for each in ensemble.inputs}, ensemble.networks, cache)
    predicted = launched.on_host()
    assert events == ["64 px", "64 px", "plain", "head", "32 px", "32 px", "other"]
    assert predicted.rows.tolist() == [4, 6, 5]
    assert (predicted.maps.shape, predicted.classes.shape) == ((3, 64, 64), (3,))


def test_films_of_other_rows_are_not_predicted(trained: Trained) -> None:
    ensemble = trained.ensemble()
    (only,) = ensemble.inputs
    films = iter([Batch(torch.zeros(3, 1, 64, 64), torch.zeros(0), np.array([1, 2, 4]))])
    with pytest.raises(AssertionError, match="other films"):
        predict_films([np.array([1, 2, 3])], {only: films}, ensemble.networks, NetworkCache(ensemble, ALONE, 1, None))


def test_network_that_has_seen_the_films_is_refused_only_for_unseen_films(trained: Trained) -> None:
    ensemble = trained.ensemble()
    network = ensemble.networks[0]
    foreign = replace(network, fold=1 - network.fold)
    model, amp = NetworkCache(ensemble, ALONE, 1, None)(foreign)
    assert isinstance(model, torch.nn.Module) and amp == "float32"
    NetworkCache(ensemble, ALONE, 1, trained.shards)(network)
    with pytest.raises(InputError, match="was trained on other films than fold"):
        NetworkCache(ensemble, ALONE, 1, trained.shards)(foreign)
