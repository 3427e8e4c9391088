"""The run folder: checks leave nothing behind, and every problem has a fix."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from only_finding import only

from pneumo_dist.doctor import run_folder
from pneumo_dist.doctor.findings import Status
from pneumo_dist.doctor.run_folder import check_clock, check_run_folder, check_sharing, file_system

MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:30 / /home rw,relatime - nfs4 server:/home rw
23 21 0:31 / /home/me/fast\\040disk rw - xfs /dev/sdb1 rw
24 21 0:32 / /scratch rw - ext4 /dev/sdc1 rw
25 24 0:33 / /scratch rw - lustre mds@tcp:/scratch rw
"""
NOW = time.mktime((2026, 6, 1, 12, 0, 0, 0, 0, 0))


def test_good_folder_is_left_unchanged(tmp_path: Path) -> None:
    runs = tmp_path / "does" / "not" / "exist"
    writes, clock = check_run_folder(runs, 1, "")
    assert (writes.status, clock.status) == (Status.OK, Status.OK)
    assert "write, fsync, rename over a file and links work" in writes.message
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    check_run_folder(tmp_path / "runs", 1, "")
    assert list((tmp_path / "runs").iterdir()) == []


def test_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    findings = check_run_folder(tmp_path / "runs", 1, "")
    only(findings, Status.ERROR, "Not a directory", "a folder is expected there")


def refuse(code: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, ("No space left", "free some space, or give another --runs")),
        (errno.EDQUOT, ("quota", "free some of your quota")),
        (errno.EIO, ("Input/output error", "on another file system")),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_write_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(os if call == "fsync" else Path, call, refuse(code))
    try:
        findings = run_folder.check_writes(tmp_path, Path("runs"))
    finally:
        monkeypatch.undo()
    only(findings, Status.ERROR, "runs: ", *words)


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EROFS, "mounted read-only"), (errno.EACCES, "change its permissions")]
)
def test_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    monkeypatch.setattr(run_folder, "scratch_folder", refuse(code))
    only(check_run_folder(tmp_path, 1, ""), Status.ERROR, words, "give another --runs")


def test_rename_that_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", lambda self, target: Path(target).touch())
    only(
        run_folder.check_writes(tmp_path, Path("runs")),
        Status.ERROR,
        "does not read back as it was written",
        "another file system",
    )


def test_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "symlink_to", refuse(errno.EPERM))
    only(
        run_folder.check_writes(tmp_path, Path("runs")),
        Status.ERROR,
        "symbolic links do not work",
        "another file system",
    )


@pytest.mark.parametrize(
    ("readings", "status", "words"),
    [
        ((NOW, NOW + 0.01, NOW + 0.02, 0.0), Status.OK, ("within 2 s",)),
        ((NOW, NOW - 0.01, NOW + 0.02, 0.0), Status.OK, ("within 2 s",)),
        ((NOW, NOW + 10.0, NOW + 20.0, 0.0), Status.OK, ("within 2 s",)),
        ((NOW, NOW + 7.0, NOW + 0.5, 0.0), Status.WARNING, ("6.5 s ahead of this node's", "by NTP")),
        ((NOW, NOW - 30.0, NOW + 0.5, 0.0), Status.WARNING, ("30.0 s behind this node's", "by NTP")),
        ((NOW, NOW, NOW, 3600.0), Status.WARNING, ("clock jumped by -3600.0 s", "by NTP")),
        ((0.0, 0.0, 0.0, 0.0), Status.WARNING, ("in the year 1970", "by NTP")),
    ],
)
def test_clock(readings: tuple[float, float, float, float], status: Status, words: tuple[str, ...]) -> None:
    only(check_clock(*readings), status, *words)


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/home/me/runs", "nfs4"),
        ("/home/me/fast disk/runs", "xfs"),
        ("/homework", "ext4"),
        ("/scratch/runs", "lustre"),
    ],
)
def test_file_system_of_a_folder(folder: str, kind: str) -> None:
    assert file_system(Path(folder), MOUNTS) == kind


def test_nodes_share_the_folder() -> None:
    only(check_sharing(Path("/home/me/runs"), 2, MOUNTS), Status.OK, "nfs4")
    only(check_sharing(Path("/data/runs"), 1, MOUNTS), Status.OK, "ext4")
    findings = check_sharing(Path("/data/runs"), 2, MOUNTS)
    only(findings, Status.WARNING, "on ext4, which other nodes may not see", "that all nodes share")
    assert check_sharing(Path("/data/runs"), 2, "") == []
