"""Locks of shared folders: whom they exclude, and whom a waiting process names."""

import os
import socket
import time
from pathlib import Path

import pytest

from shards.locks import Wait, holder, try_lock, try_signed_lock
from shards.stored import open_append


def test_a_lock_excludes_all_others_and_a_shared_one_those_that_do_not_share(tmp_path: Path) -> None:
    with open_append(tmp_path / "lock") as first, open_append(tmp_path / "lock") as second:
        assert try_lock(first, shared=True)
        assert try_lock(second, shared=True)
        with open_append(tmp_path / "lock") as third:
            assert not try_lock(third)
    with open_append(tmp_path / "lock") as first, open_append(tmp_path / "lock") as second:
        assert try_lock(first), "closing the file releases the lock"
        assert not try_lock(second)
        assert not try_lock(second, shared=True)


def test_a_signed_lock_says_who_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    path.write_text("an earlier holder with a long description " * 20)
    monkeypatch.setattr("sys.argv", ["/bin/pneumo-shards", "build", "--out", "my films"])
    with open_append(path) as first, open_append(path) as second:
        assert try_signed_lock(first)
        told = holder(path)
        assert told.startswith(f"process {os.getpid()} on {socket.gethostname()} since 20")
        assert told.endswith(": pneumo-shards build --out 'my films'")
        assert not try_signed_lock(second)
        assert holder(path) == told


def test_a_holder_that_another_program_wrote_is_short_and_printable(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b"process 1\x1b[2J\n\xff" + b"a" * 5000)
    told = holder(tmp_path / "lock")
    assert told.startswith(r"process 1\x1b[2J\n\xffaaa") and told.isprintable() and len(told) < 1100
    assert holder(tmp_path / "missing") == "another process"
    (tmp_path / "lock").write_bytes(b"")
    assert holder(tmp_path / "lock") == "another process"


def test_a_full_disk_does_not_refuse_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with open_append(tmp_path / "lock") as first, open_append(tmp_path / "lock") as second:
        monkeypatch.setattr(os, "write", full)
        assert try_signed_lock(first)
        assert not try_signed_lock(second)


def test_a_wait_is_told_after_a_few_seconds_and_then_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [100.0], list[tuple[float, str]]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    (tmp_path / "lock").write_text("process 7")
    wait = Wait(tmp_path / "lock", lambda who: told.append((now[0] - 100, who)))
    while now[0] < 100 + 1000:
        wait.go_on()
        now[0] += 0.5
    assert told == [(5.0, "process 7"), (305.0, "process 7"), (605.0, "process 7"), (905.0, "process 7")]
