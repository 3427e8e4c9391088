"""What a rank holds: all networks if they fit, otherwise one network and as many films as fit."""

from dataclasses import replace

import pytest
from tiny_runs import ALONE, MIXED, Trained

from pneumo_dist.predict.memory import Held, batch_bytes, free_bytes, held_in_memory, network_bytes

GB = 10**9


@pytest.mark.parametrize(
    ("free", "networks", "limit", "expected"),
    [
        (16 * GB, [GB] * 7, None, Held(7, 1)),  # 7 networks and a batch are exactly the usable half
        (16 * GB - 2, [GB] * 7, None, Held(1, 6)),
        (80 * GB, [GB // 2] * 15, None, Held(15, 1)),
        (11 * GB, [GB // 2] * 15, None, Held(1, 5)),
        (80 * GB, [GB] * 15, 4, Held(1, 39)),
        (80 * GB, [GB] * 15, 15, Held(15, 1)),
        (GB, [GB] * 15, 15, Held(15, 1)),  # the user knows better
        (GB, [GB] * 15, None, Held(1, 2)),  # too little memory: as many films as a block has
        (80 * GB, [GB, 3 * GB, 2 * GB], 1, Held(1, 37)),
    ],
)
def test_networks_are_held_if_they_fit(free: int, networks: list[int], limit: int | None, expected: Held) -> None:
    assert held_in_memory(free, networks, GB, least=2, limit=limit) == expected


def test_sizes_are_those_of_loaded_networks_and_batches(trained: Trained) -> None:
    ensemble = trained.ensemble(members=MIXED)
    loaded = [network.read().build(network.name).state_dict() for network in ensemble.networks]
    sizes = [sum(value.numel() * value.element_size() for value in state.values()) for state in loaded]
    assert network_bytes(ensemble.networks) == sizes and len({*sizes}) == 3
    # The largest input is the head's: 96 px, one channel. Maps are stored at that side.
    assert ensemble.eval_batch == 3 and batch_bytes(ensemble) == 3 * 4 * (96 * 96 + 96 * 96)
    half = replace(ensemble, data=ensemble.data.model_copy(update={"image_dtype": "float16"}))
    assert batch_bytes(half) == 3 * 4 * (96 * 96 * 3 // 2 + 96 * 96)


def test_ranks_of_a_node_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumo_dist.predict.memory.available_memory", lambda: 800)
    assert free_bytes(ALONE) == 800
    variables = {"RANK": 9, "WORLD_SIZE": 16, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 8, "MASTER_ADDR": "a"}
    for name, value in {**variables, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert free_bytes(ALONE) == 100
