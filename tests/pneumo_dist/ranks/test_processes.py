"""The memory that a process may take: what the host has, within its control groups."""

from pathlib import Path

import pytest

from pneumo_dist.ranks.processes import available_memory, control_groups

MB = 10**6


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with 1,024,000 bytes, and a process in two nested control groups without limits."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    1000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/job/step\n")
    return tmp_path


def limit(root: Path, group: str, most: str, used: int, cached: int) -> None:
    folder = root / "sys/fs/cgroup" / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nfile {cached}\nslab 7\n")


def test_host_without_limits_gives_what_it_has(root: Path) -> None:
    assert available_memory(root) == 1_024_000
    limit(root, "job", "max", 900, 0)
    assert available_memory(root) == 1_024_000


def test_least_room_of_all_groups_counts_and_cached_files_do_not(root: Path) -> None:
    limit(root, "job", "900000", 600_000, 100_000)
    assert available_memory(root) == 400_000
    limit(root, "job/step", "500000", 300_000, 50_000)
    assert available_memory(root) == 250_000
    limit(root, "job/step", "1000", 3000, 0)
    assert available_memory(root) == 0


def test_groups_are_listed_from_the_process_up(root: Path) -> None:
    top = root / "sys/fs/cgroup"
    assert control_groups(root) == [top / "job/step", top / "job", top]
    assert control_groups(root / "nowhere") == []


def test_this_machine_has_memory() -> None:
    assert available_memory() > MB
