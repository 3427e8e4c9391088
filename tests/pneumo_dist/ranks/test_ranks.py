"""Collectives: identities in a single process, and exchanges between two ranks."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pneumo_dist.ranks import ranks as distributed
from pneumo_dist.ranks.ranks import Ranks, check_agreement, pick_device, process_group
from shards.errors import InputError

ALONE = Ranks.alone()


def test_collectives_of_a_single_process_are_identities() -> None:
    assert ALONE.is_main and ALONE.device_id is None
    assert ALONE.gather_bytes(b"") == [b""]
    assert ALONE.gather_bytes(b"abc") == [b"abc"]
    assert ALONE.to_rank_0(b"") == [b""] and ALONE.to_rank_0(b"abc") == [b"abc"]
    for array in (np.arange(6).reshape(2, 3), np.zeros((0, 5), np.uint8), np.array([1.5, -0.0])):
        (found,) = ALONE.gather_array(array)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(ALONE.sum(np.array([0.1, 2.0])), [0.1, 2.0])


def test_pickled_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="pickle"):
        ALONE.gather_array(np.array([{"a": 1}], dtype=object))


def test_buffers_of_a_single_process_are_unchanged() -> None:
    norm = torch.nn.BatchNorm2d(2)
    norm(torch.randn(4, 2, 3, 3))
    before = [buffer.clone() for buffer in norm.buffers()]
    ALONE.broadcast_buffers(norm)
    assert all(torch.equal(one, other) for one, other in zip(norm.buffers(), before, strict=True))


@pytest.mark.parametrize(
    "left", [{}, {"MASTER_ADDR": "node1", "MASTER_PORT": "1"}, {"WORLD_SIZE": "4", "LOCAL_RANK": "3"}]
)
def test_process_without_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch, left: dict[str, str]) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with process_group(cpu=True) as ranks:
        assert (ranks.rank, ranks.world, ranks.control) == (0, 1, None)
        assert ranks.device == torch.device("cpu")
        assert not torch.distributed.is_initialized()


def test_cpu_is_used_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(0, cpu=True) == torch.device("cpu")


def test_single_rank_agrees_with_itself() -> None:
    check_agreement(ALONE, {"code": "1.2", "config": "abc"})


FACTS = {"code": "1.2", "config": "abc", "shards": "same"}
DISAGREEMENTS: dict[str, dict[str, str]] = {
    "nothing": {},
    "config": {"config": "another"},
    "shards": {"shards": "others"},
    "code": {"code": "1.3", "config": "follows from it"},
}


def write_findings(folder: Path) -> None:
    """On each rank: write the results of collectives, and the error of `check_agreement` if rank 1 differs."""
    found: dict[str, Any] = {}
    with process_group(cpu=True) as ranks:
        for name, changes in DISAGREEMENTS.items():
            try:
                check_agreement(ranks, {**FACTS, **(changes if ranks.rank else {})})
            except InputError as error:
                found[name] = str(error)
            else:
                found[name] = None
        found["bytes"] = [part.decode() for part in ranks.gather_bytes(b"x" * (3 * ranks.rank))]
        # In turns one of the two has nothing to send.
        sent = [ranks.to_rank_0(b"x" * (70_000 * (ranks.rank == turn) + turn)) for turn in range(2)]
        found["sent"] = [[len(part) for part in parts] for parts in sent]
        arrays = ranks.gather_array(np.full((ranks.rank, 2), ranks.rank, np.int16))
        found["arrays"] = [(str(array.dtype), list(array.shape), array.tolist()) for array in arrays]
        found["sum"] = ranks.sum(np.array([0.5, 10.0 * ranks.rank])).tolist()
        norm = torch.nn.BatchNorm1d(2)
        norm(torch.full((4, 2), 10.0 * (ranks.rank + 1)))
        ranks.broadcast_buffers(norm)
        found["mean"] = norm.running_mean.tolist() if norm.running_mean is not None else None
        (folder / f"{ranks.rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The file of each rank."""
    folder = tmp_path_factory.mktemp("ranks")
    run_two_ranks("findings", folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def run_two_ranks(what: str, folder: Path, *options: str) -> None:
    from integration.conftest import ROOT, environment

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    result = subprocess.run(
        [*command, __file__, what, str(folder)],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", DISAGREEMENTS)
def test_ranks_that_differ_raise_one_error_with_the_difference(two_ranks: list[dict[str, Any]], name: str) -> None:
    first, second = (rank[name] for rank in two_ranks)
    assert first == second
    if name == "nothing":
        assert first is None
    else:
        theirs = DISAGREEMENTS[name][name]
        assert f"disagree on {name}: rank 1 has {theirs}, rank 0 has {FACTS[name]}" in first


@pytest.mark.slow
def test_collectives_return_the_same_on_every_rank(two_ranks: list[dict[str, Any]]) -> None:
    expected = {
        "bytes": ["", "xxx"],
        "arrays": [["int16", [0, 2], []], ["int16", [1, 2], [[1, 1]]]],
        "sum": [1.0, 10.0],
        "mean": [1.0, 1.0],
    }
    for rank in two_ranks:
        assert {name: rank[name] for name in expected} == expected
    assert [rank["sent"] for rank in two_ranks] == [[[70_000, 0], [1, 70_001]], [[], []]]


# Restarted ranks


def leave_a_trace(folder: Path) -> None:
    """On each rank: fail in the first attempt. In the second, write the keys of the first in the group's store."""
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    with process_group(cpu=True) as ranks:
        store = torch.distributed.distributed_c10d._get_default_store()
        left = store.check([f"trace of {rank}" for rank in range(2)])
        ranks.gather_bytes(b"")  # both have read the store
        store.set(f"trace of {ranks.rank}", "left")
        store.wait(["trace of 0", "trace of 1"])
        ranks.gather_bytes(b"")
        if attempt == 0:
            sys.exit(1)
        (folder / f"{ranks.rank}.json").write_text(json.dumps({"attempt": attempt, "left": left}))


@pytest.mark.slow
def test_restarted_ranks_see_no_keys_of_the_first_attempt(tmp_path: Path) -> None:
    run_two_ranks("trace", tmp_path, "--max-restarts", "1")
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {"attempt": 1, "left": False}


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The second attempt of an agent, without the agent."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda url, timeout: iter([(store, 0, 2)]))
    variables = {"USE_AGENT_STORE": "True", "RESTART_COUNT": "1", "MAX_RESTARTS": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    return monkeypatch


def test_attempts_share_no_keys_on_one_node_and_no_store_on_several(torchrun: pytest.MonkeyPatch) -> None:
    torchrun.setenv("GROUP_WORLD_SIZE", "1")
    second = distributed._attempt_store(timedelta(minutes=1))
    second.set("key", "value")
    torchrun.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert not distributed._attempt_store(timedelta(minutes=1)).check(["key"])
    torchrun.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        distributed._attempt_store(timedelta(minutes=1))
    torchrun.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")  # the effect of that variable
    distributed._attempt_store(timedelta(minutes=1)).set("key", "value")
    torchrun.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    torchrun.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert distributed._attempt_store(timedelta(minutes=1)).check(["key"]), "no second attempt, no prefix"


if __name__ == "__main__":
    {"findings": write_findings, "trace": leave_a_trace}[sys.argv[1]](Path(sys.argv[2]))
