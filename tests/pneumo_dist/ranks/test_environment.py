"""The rank from the environment: a complete set of variables counts, a partial one is ignored."""

from itertools import combinations

import pytest

from pneumo_dist.ranks.environment import NEEDED, LaunchedRank, is_first, launched_rank, left_over
from shards.errors import InputError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "alpha",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "x",
}


PARTS = [
    {name: TORCHRUN[name] for name in names} for count in range(len(NEEDED)) for names in combinations(NEEDED, count)
]


def test_ranks_of_torchrun() -> None:
    assert launched_rank(TORCHRUN) == LaunchedRank(3, 4, 1, 2)
    assert not is_first(TORCHRUN) and is_first({**TORCHRUN, "RANK": "0"})
    assert left_over(TORCHRUN) == []
    without = {name: value for name, value in TORCHRUN.items() if not name.startswith(("LOCAL", "TORCH"))}
    assert launched_rank(without) == LaunchedRank(3, 4, 0)


@pytest.mark.parametrize("env", PARTS, ids=lambda env: "-".join(env) or "nothing")
def test_partial_set_of_variables_is_ignored_and_named(env: dict[str, str]) -> None:
    for more in ({}, {"LOCAL_RANK": "3"}, {"TORCHELASTIC_RUN_ID": "x"}):
        assert launched_rank(env | more) is None
        assert is_first(env | more)
        assert left_over(env | more) == [*env, *(["LOCAL_RANK"] if "LOCAL_RANK" in more else [])]
    assert launched_rank({**env, next(name for name in NEEDED if name not in env): ""}) is None


def test_world_of_one_is_a_single_process_unless_torchrun_started_it() -> None:
    one = {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert launched_rank(one) == LaunchedRank(0, 1, 0, 1)
    del one["TORCHELASTIC_RUN_ID"]
    assert launched_rank(one) is None and "MASTER_ADDR" in left_over(one)


@pytest.mark.parametrize(
    "change", [{"RANK": "4"}, {"RANK": "-1"}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "²"}, {"RANK": "x"}]
)
def test_contradictory_variables_give_one_line(change: dict[str, str]) -> None:
    ((name, value),) = change.items()
    with pytest.raises(InputError, match=f"{name}={value}.*unset RANK, WORLD_SIZE") as caught:
        launched_rank(TORCHRUN | change)
    assert "\n" not in str(caught.value)
