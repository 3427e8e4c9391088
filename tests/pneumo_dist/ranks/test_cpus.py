"""The CPUs that a process may use, and the threads of a rank's loader."""

from pathlib import Path

import pytest

from pneumo_dist.ranks.cpus import allowed_cpus, cpu_quota, loader_threads, ranks_here


def write(root: Path, name: str, content: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_quota_of_the_control_group_and_its_parents(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    write(tmp_path, "proc/self/cgroup", "1:cpu:/old\n0::/job/step\n")
    assert cpu_quota(tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/job/step/cpu.max", "max 100000\n")
    assert cpu_quota(tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/job/cpu.max", "150000 100000\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "400000 100000\n")
    assert cpu_quota(tmp_path) == 1.5
    write(tmp_path, "sys/fs/cgroup/job/cpu.max", "50000 100000\n")
    assert allowed_cpus(tmp_path) == 0.5


@pytest.mark.parametrize(
    ("threads", "allowed", "ranks", "expected"),
    [(None, 2, 2, 1), (None, 0.5, 1, 1), (None, 64, 8, 7), (None, 96, 8, 8), (None, 64, 1, 8), (3, 64, 8, 3)],
)
def test_threads_are_those_of_the_config_or_the_ranks_cpus_but_one(
    threads: int | None, allowed: float, ranks: int, expected: int
) -> None:
    assert loader_threads(threads, allowed, ranks) == expected


def test_ranks_of_this_node() -> None:
    launched = {"RANK": "9", "WORLD_SIZE": "16", "MASTER_ADDR": "a", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}
    assert ranks_here({}) == ranks_here(launched) == 1
    assert ranks_here({**launched, "LOCAL_WORLD_SIZE": "8"}) == 8
