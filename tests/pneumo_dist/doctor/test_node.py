"""Shared memory, open files, CPUs and NUMA: enough, and too little with a fix."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import experiment_of
from only_finding import only

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.doctor.findings import Status
from pneumo_dist.doctor.job import job_of
from pneumo_dist.doctor.node import (
    check_cpus,
    check_decoding,
    check_numa,
    check_open_files,
    check_shared_memory,
    decoding_cpus,
    free_bytes,
    open_files,
    shared_memory_bytes,
)
from shards.dataset.table import Shards

MIB, GIB = 2**20, 2**30


def reading(**data: Any) -> Experiment:
    """Return an experiment with a stage of small films and one of large films, read like this."""
    stages = {"micro_batch": 2, "eval_batch": 16}, {"image_size": 128, "micro_batch": 8, "eval_batch": 4}
    return experiment_of(*stages, model={"in_channels": 1}, data={"loader": "torch", **data})


def test_batches_in_shared_memory() -> None:
    batch = 8 * 128 * 128 * (1 * 4 + 1)
    assert shared_memory_bytes(reading(), ranks=1, allowed=2) == 2 * 3 * batch
    assert shared_memory_bytes(reading(threads=4, prefetch=3), ranks=2, allowed=2) == 2 * 2 * 13 * batch
    assert shared_memory_bytes(reading(), ranks=2, allowed=10) == 2 * 2 * 9 * batch, "four workers by default"
    half = reading(image_dtype="float16")
    assert shared_memory_bytes(half, ranks=1, allowed=2) == 2 * 3 * 8 * 128 * 128 * 3
    assert shared_memory_bytes(reading(loader="dali"), ranks=8, allowed=64) == 0


def test_evaluation_of_whole_films_needs_more_shared_memory_than_training_on_crops() -> None:
    stage = {"micro_batch": 4, "eval_batch": 2, "eval_image_size": 256}
    experiment = experiment_of(stage, model={"in_channels": 1}, data={"loader": "torch"})
    assert shared_memory_bytes(experiment, ranks=1, allowed=2) == 2 * 3 * 2 * 256 * 256 * 5


def test_shared_memory() -> None:
    only(check_shared_memory(64 * MIB, 0, gpu_ranks=0), Status.OK, "64 MiB free, the loader needs none")
    only(check_shared_memory(2 * GIB, 100 * MIB, gpu_ranks=8), Status.OK, "2.0 GiB free", "up to 100 MiB")
    only(check_shared_memory(64 * MIB, 65 * MIB, gpu_ranks=0), Status.ERROR, "64 MiB free", "65 MiB", "--shm-size=8g")
    only(check_shared_memory(64 * MIB, 0, gpu_ranks=2), Status.WARNING, "NCCL may need 1.0 GiB", "--ipc=host")
    only(check_shared_memory(64 * MIB, 0, gpu_ranks=1), Status.OK, "64 MiB free")
    only(check_shared_memory(None, 0, gpu_ranks=0), Status.WARNING, "does not exist", "--shm-size")
    only(check_shared_memory(None, 1, gpu_ranks=0), Status.ERROR, "does not exist", "--shm-size")


def test_free_bytes(tmp_path: Path) -> None:
    assert (free_bytes(tmp_path) or 0) > 0
    assert free_bytes(tmp_path / "missing") is None


def test_files_that_a_rank_opens() -> None:
    assert open_files(reading(loader="dali"), shards=30, world=1, threads=4) == (30, 290)
    assert open_files(reading(threads=4, prefetch=3), shards=30, world=8, threads=4) == (108, 396)


@pytest.mark.parametrize("limit", [1024, 300, -1])
def test_good_limit_of_open_files(limit: int) -> None:
    only(check_open_files(limit, certain=30, likely=300), Status.OK, "may need 300")


def test_low_limit_of_open_files() -> None:
    words = ("the limit is 256", "raise nofile to 300 in /etc/security/limits.conf")
    only(check_open_files(256, certain=30, likely=300), Status.WARNING, *words)
    only(check_open_files(256, certain=260, likely=520), Status.ERROR, "the limit is 256", "--ulimit nofile=520")


def write(root: Path, name: str, content: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_cpus() -> None:
    one = reading()
    only(check_cpus(2.0, one, ranks=2), Status.OK, "2 usable, 1 per rank")
    only(check_cpus(1.5, one, ranks=2), Status.WARNING, "0.75 per rank", "--cpus-per-gpu")
    eight = reading(threads=8)
    only(check_cpus(72.0, eight, ranks=8), Status.OK, "9 per rank")
    only(check_cpus(64.0, eight, ranks=8), Status.WARNING, "8 per rank", "ask for 72", "lower data.threads")


@pytest.mark.parametrize(("sides", "needed"), [((512,), 6), ((1024, 512), 6), ((256,), 24), ((1024,), 2)])
def test_cpus_that_decode_png_films(
    films: Shards, sides: tuple[int, ...], needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """654 films/s of 9.1 ms at 512 px from 1024 px; a quarter of the rate for four times the pixels."""
    stages = [{"image_size": side} for side in sides]
    by_dali, by_torch = (experiment_of(*stages, data={"loader": name}) for name in ("dali", "torch"))
    shards = copy.copy(films)
    monkeypatch.setattr(Shards, "column", lambda *_: np.full(len(films), 1024))
    assert decoding_cpus(shards, by_dali) == needed
    assert decoding_cpus(shards, by_torch) == 0
    shards.manifest = {**films.manifest, "codec": "jpeg"}
    assert decoding_cpus(shards, by_dali) == 0


def test_decoding() -> None:
    assert check_decoding(64, 6, ranks=8) == check_decoding(1, 0, ranks=8) == []
    fix = "JPEG shards (--codec jpeg), or ask for 6 cores a GPU"
    only(check_decoding(16, 6, ranks=8), Status.WARNING, "2 per GPU", fix)


def numa_node(root: Path, has_cpu: str = "0-1", allowed: str = "0-63") -> Path:
    write(root, "sys/devices/system/node/has_cpu", f"{has_cpu}\n")
    write(root, "sys/devices/system/cpu/online", "0-63\n")
    write(root, "proc/self/status", f"Name:\tpython\nCpus_allowed_list:\t{allowed}\n")
    return root


def test_ranks_are_bound_as_launch_numa_does(tmp_path: Path) -> None:
    on_gpus, on_cpu = job_of("n0", {}, 2, None), job_of("n0", {}, 0, None)
    root = numa_node(tmp_path)
    only(check_numa(on_gpus, True, root), Status.OK, "binds each rank to its GPU's node")
    only(check_numa(on_gpus, False, root), Status.WARNING, "no numactl", "apt-get install numactl")
    assert check_numa(on_cpu, False, root) == []
    only(check_numa(on_gpus, False, numa_node(tmp_path, allowed="0-31")), Status.OK, "some of the CPUs")
    assert check_numa(on_gpus, False, numa_node(tmp_path, has_cpu="0")) == []
    assert check_numa(on_gpus, False, tmp_path / "missing") == []
