"""Temporaries: a killed process's are removed by the next writer of the same name, a live one's never."""

import fcntl
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.files import atomic_open, atomic_write
from shards.temporaries import UNUSED_SECONDS, remove_all_unused, scratch_folder


def killed(work: Callable[[], object]) -> None:
    """Run something that kills its own process, in a child."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def write_and_die(path: Path) -> None:
    with atomic_open(path) as stream:
        stream.write(b"part")
        stream.flush()
        die()


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_the_next_write_removes_what_a_kill_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    path = tmp_path / "thresholds.json"
    atomic_write(path, "old")
    with monkeypatch.context() as patch:
        if moment == "fsync":
            patch.setattr(os, "fsync", lambda descriptor: die())
        elif moment == "replace":
            patch.setattr(Path, "replace", lambda *_: die())
        killed(lambda: write_and_die(path) if moment == "write" else atomic_write(path, "new"))
    assert names(tmp_path) == {"thresholds.json", ".thresholds.json.0.tmp"}
    assert path.read_text() == "old"
    atomic_write(path, "newer")
    assert names(tmp_path) == {"thresholds.json"}
    assert path.read_text() == "newer"


def test_a_write_removes_no_temporary_of_another_name_or_of_a_live_process(tmp_path: Path) -> None:
    foreign = [".a.json.tmp", ".a.json.x.tmp", ".ba.json.0.tmp", ".a.0.tmp", "a.json.0.tmp"]
    for name in foreign:
        (tmp_path / name).touch()
    with atomic_open(tmp_path / "a.json") as first:
        first.write(b"first")
        atomic_write(tmp_path / "a.json", "second")
        assert names(tmp_path) == {*foreign, "a.json", ".a.json.0.tmp"}
        with atomic_open(tmp_path / "a.json") as third:
            third.write(b"third")
            assert names(tmp_path) == {*foreign, "a.json", ".a.json.0.tmp", ".a.json.1.tmp"}
    assert names(tmp_path) == {*foreign, "a.json"}
    assert (tmp_path / "a.json").read_text() == "first"


def test_what_several_killed_writers_left_is_removed_at_once(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f".a.{number}.tmp").touch()
    atomic_write(tmp_path / "a", "")
    assert names(tmp_path) == {"a"}


def test_a_temporary_is_in_use_until_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that cleans up between fsync and rename takes nothing away."""
    real = Path.replace

    def cleaned(source: Path, target: Path) -> Path:
        remove_all_unused(tmp_path)
        return real(source, target)

    monkeypatch.setattr(Path, "replace", cleaned)
    atomic_write(tmp_path / "a", "content")
    assert (tmp_path / "a").read_text() == "content"


def test_a_new_temporary_that_another_process_took_for_an_old_one_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process cleans up after this one created its file, and before it locked it."""
    real, calls = fcntl.flock, list[int]()

    def late(descriptor: int, operation: int) -> None:
        if not calls:
            calls.append(descriptor)
            remove_all_unused(tmp_path)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    atomic_write(tmp_path / "a", "content")
    assert calls and names(tmp_path) == {"a"}
    assert (tmp_path / "a").read_text() == "content"


def test_without_locks_only_old_temporaries_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    (tmp_path / ".a.0.tmp").touch()
    (tmp_path / ".a.1.tmp").touch()
    old = time.time() - UNUSED_SECONDS - 10
    os.utime(tmp_path / ".a.1.tmp", (old, old))
    atomic_write(tmp_path / "a", "content")
    assert names(tmp_path) == {"a", ".a.0.tmp"}


def test_a_link_or_file_in_the_way_is_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "good").write_text("good")
    (tmp_path / ".a.0.tmp").symlink_to("good")
    os.link(tmp_path / "good", tmp_path / ".b.0.tmp")
    for name in "ab":
        atomic_write(tmp_path / name, "content")
    assert (tmp_path / "good").read_text() == "good"
    assert names(tmp_path) == {"good", "a", "b"}


def test_a_scratch_folder_is_private_and_removed_by_the_next_after_a_kill(tmp_path: Path) -> None:
    def work() -> None:
        with scratch_folder(tmp_path / "new", "films") as folder:
            (folder / "below").mkdir()
            (folder / "below/pixels").write_bytes(b"a patient")
            die()

    killed(work)
    assert names(tmp_path / "new") == {".films.0.tmp"}
    with scratch_folder(tmp_path / "new", "films") as folder:
        assert names(tmp_path / "new") == {folder.name} and names(folder) == set()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with scratch_folder(tmp_path / "new", "films") as other:
            assert names(tmp_path / "new") == {folder.name, other.name}
    assert names(tmp_path / "new") == set()


def test_a_fork_removes_nothing_of_its_parent(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, "films") as folder:
        held = scratch_folder(tmp_path, "more")
        other = held.__enter__()
        child = os.fork()
        if child == 0:
            held.__exit__(None, None, None)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert names(tmp_path) == {folder.name, other.name}
        held.__exit__(None, None, None)
    assert names(tmp_path) == set()
